"""Every loss against its plain form, which scores every item for every position."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import seqrec_lib as sr
from seqrec_lib.training import LOSSES, chunked_cross_entropy, losses

NAMES = tuple(LOSSES)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


class Readout(torch.nn.Module):
    """The part of a model a loss sees: queries (a linear map), a table and perhaps a bias."""

    def __init__(self, num_items=23, dim=6, bias=True, dtype=torch.float64, scale=0.3):
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        make = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)  # noqa: E731
        self.project = torch.nn.Parameter((make(dim, dim) * scale).to(dtype))
        self.table = torch.nn.Parameter(make(num_items + 1, dim).to(dtype))
        self.bias = torch.nn.Parameter(make(num_items + 1).to(dtype)) if bias else None

    def queries(self, encoded):
        return encoded @ self.project

    def readout(self):
        return self.table, self.bias

    def logits(self, encoded):
        """(n, num_items + 1), padding at -inf: what no loss may build."""
        logits = self.queries(encoded) @ self.table.T
        if self.bias is not None:
            logits = logits + self.bias
        return torch.cat([torch.full_like(logits[:, :1], -math.inf), logits[:, 1:]], 1)


def naive(name, model, encoded, targets, negatives):
    logits = model.logits(encoded)
    rows = torch.arange(len(targets))
    if name == "ce":
        return -logits.log_softmax(1)[rows, targets].mean()
    positive, negative = logits[rows, targets], logits[rows[:, None], negatives]
    if name == "sampled_ce":
        among = torch.cat([positive[:, None], negative], 1)
        return -among.log_softmax(1)[:, 0].mean()
    if name == "bce":
        right, wrong = F.logsigmoid(positive), F.logsigmoid(-negative).sum(1)
        return -(right + wrong).mean()
    return -F.logsigmoid(positive[:, None] - negative).mean()


def problem(n=77, num_items=23, dim=6, negatives=3, dtype=torch.float64):
    draw = torch.Generator().manual_seed(2)
    encoded = torch.randn(n, dim, generator=draw, dtype=torch.float64).to(dtype)
    targets = torch.randint(1, num_items + 1, (n,), generator=draw)
    drawn = torch.randint(1, num_items + 1, (n, negatives), generator=draw)
    return encoded.requires_grad_(), targets, drawn


def value_and_gradients(loss, model, encoded):
    wanted = [encoded, *model.parameters()]
    return loss, torch.autograd.grad(loss, wanted, allow_unused=True)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("negatives", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_and_its_gradients_equal_the_plain_form(name, negatives, bias, dtype):
    model = Readout(bias=bias, dtype=dtype)
    encoded, targets, drawn = problem(negatives=negatives, dtype=dtype)
    drawn = None if name == "ce" else drawn
    ours, gradients = value_and_gradients(
        LOSSES[name](model, encoded, targets, drawn), model, encoded
    )
    plain, expected = value_and_gradients(
        naive(name, model, encoded, targets, drawn), model, encoded
    )
    assert ours.dtype == dtype and ours.shape == ()
    tolerance = dict(rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(ours, plain, **tolerance)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, **tolerance)
        assert gradient.abs().max() > 1e-3  # both being zero would be no test


@pytest.mark.parametrize("chunk", [1, 7, 76, 77, 78, 1000])
def test_the_chunk_changes_nothing(chunk):
    model = Readout()
    encoded, targets, _ = problem()
    table, bias = model.readout()
    ours, gradients = value_and_gradients(
        chunked_cross_entropy(model.queries(encoded), table, targets, bias, chunk=chunk),
        model, encoded,
    )  # fmt: skip
    plain, expected = value_and_gradients(
        F.cross_entropy(model.queries(encoded) @ table.T + bias, targets), model, encoded
    )
    torch.testing.assert_close(ours, plain)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_the_gradient_is_scaled_by_what_follows():
    """A loss may be one term of several: its gradient takes the factor that comes from above."""
    model = Readout()
    encoded, targets, _ = problem()
    once = torch.autograd.grad(LOSSES["ce"](model, encoded, targets), encoded)[0]
    encoded_loss = 3 * LOSSES["ce"](model, encoded, targets) + encoded.square().sum()
    thrice = torch.autograd.grad(encoded_loss, encoded)[0]
    torch.testing.assert_close(thrice, 3 * once + 2 * encoded.detach())


def test_only_what_is_wanted_gets_a_gradient():
    model = Readout()
    encoded, targets, _ = problem()
    with torch.no_grad():
        quiet = LOSSES["ce"](model, encoded, targets)
    torch.testing.assert_close(quiet, naive("ce", model, encoded, targets, None))
    model.table.requires_grad_(False)
    LOSSES["ce"](model, encoded, targets).backward()
    assert model.table.grad is None and model.bias.grad is not None and encoded.grad is not None


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_extreme_scores_stay_finite_and_keep_the_right_gradient(dtype):
    model = Readout(dtype=dtype, scale=300.0)  # scores of several thousands
    encoded, targets, _ = problem(dtype=dtype)
    ours, gradients = value_and_gradients(LOSSES["ce"](model, encoded, targets), model, encoded)
    _, expected = value_and_gradients(naive("ce", model, encoded, targets, None), model, encoded)
    assert ours.isfinite() and ours > 20
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_score_that_is_no_number_shows_in_the_loss(name, bad):
    """Training stops on a loss that is not finite, so no loss may hide one."""
    model = Readout()
    encoded, targets, drawn = problem()
    with torch.no_grad():
        encoded[5] = bad
    assert not LOSSES[name](model, encoded, targets, None if name == "ce" else drawn).isfinite()


def test_nothing_to_predict_is_refused():
    model = Readout()
    with pytest.raises(ValueError, match="no position to compute a loss on"):
        LOSSES["ce"](model, torch.zeros(0, 6).double(), torch.zeros(0).long())


def test_bpr_adds_the_regularizer_of_a_model_that_has_one():
    model = Readout()
    encoded, targets, drawn = problem()
    without = LOSSES["bpr"](model, encoded, targets, drawn)
    model.regularizer = lambda encoded, targets, negatives: encoded.mean() + negatives.shape[1]
    with_it = LOSSES["bpr"](model, encoded, targets, drawn)
    torch.testing.assert_close(with_it - without, encoded.mean() + 3)


class Largest(TorchDispatchMode):
    """Records the most elements any operation's result held, backward passes included."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if torch.is_tensor(tensor):
                self.size = max(self.size, tensor.untyped_storage().nbytes() // tensor.itemsize)
        return result


@pytest.mark.parametrize("name", NAMES)
def test_no_loss_holds_a_score_for_every_position_and_item(name):
    batch, length, num_items, dim = 40, 50, 3000, 8
    model = sr.SASRec(num_items, max_len=length, dim=dim, num_blocks=1)
    items = torch.randint(1, num_items + 1, (batch, length))
    targets = torch.randint(1, num_items + 1, (batch * length,))
    drawn = None if name == "ce" else torch.randint(1, num_items + 1, (batch * length, 1))
    with Largest() as seen:
        encoded = model.encode(items).flatten(0, 1)
        LOSSES[name](model, encoded, targets, drawn).backward()
    # 512 positions at once, a fixed number; the whole would be four times that, and grow.
    allowed = 512 * num_items if name == "ce" else batch * length * length
    assert seen.size <= allowed < batch * length * num_items / 3
    with Largest() as whole:
        naive_loss = F.cross_entropy(model(items).flatten(0, 1), targets)
    assert whole.size >= batch * length * num_items and naive_loss.isfinite()  # the probe sees


class Shapes(TorchDispatchMode):
    """Records the shapes of the matrix products."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.seen.add(tuple(a.shape for a in args if torch.is_tensor(a)))
        return func(*args, **(kwargs or {}))


def test_low_precision_products_have_few_shapes():
    """oneDNN compiles bfloat16 products shape by shape, and keeps megabytes for each."""
    table = torch.randn(30, 6, requires_grad=True)
    with Shapes() as products, torch.autocast("cpu", torch.bfloat16):
        for n in range(450, 700):
            queries = torch.randn(n, 6, requires_grad=True)
            chunked_cross_entropy(queries, table, torch.zeros(n, dtype=torch.long)).backward()
    assert len(products.seen) <= 3 * 8


@pytest.mark.parametrize("name", NAMES)
def test_a_readout_s_bias_keeps_its_scores_out_of_low_precision(name):
    encoded, targets, drawn = problem(dtype=torch.float32)
    drawn = None if name == "ce" else drawn
    for bias in (True, False):
        model = Readout(dtype=torch.float32, bias=bias)
        model.queries = lambda encoded: encoded  # what makes them may be in low precision
        exact = LOSSES[name](model, encoded, targets, drawn)
        with torch.autocast("cpu", torch.bfloat16):
            assert (LOSSES[name](model, encoded, targets, drawn) == exact) == bias


def test_bfloat16_products_err_by_no_more_than_their_eight_bits_allow():
    model = Readout(num_items=500, dim=32, dtype=torch.float32, scale=0.2)
    encoded, targets, _ = problem(n=900, num_items=500, dim=32, dtype=torch.float32)
    exact, expected = value_and_gradients(LOSSES["ce"](model, encoded, targets), model, encoded)
    with torch.autocast("cpu", torch.bfloat16):
        queries = model.queries(encoded).float()
        table, bias = model.readout()
        rough = chunked_cross_entropy(queries, table[1:], targets - 1, bias[1:])
    rough, gradients = value_and_gradients(rough, model, encoded)
    assert rough.dtype == torch.float32
    assert 0 < abs(rough - exact) < 0.01 * exact
    for gradient, other in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        # a product of bfloat16s carries 2^-8 of each factor
        assert 0 < (gradient - other).norm() < 0.03 * other.norm()
        assert F.cosine_similarity(gradient.flatten(), other.flatten(), dim=0) > 0.999


# ---- where a step is taken -----------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ce", "bpr"])
@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        (kind, name)
        for kind in (sr.SASRec, sr.STOSA)
        for name, weighting in sr.WEIGHTINGS.items()
        if kind.gaussian or not weighting.gaussian
    ],
)
def test_all_of_a_step_is_on_the_device_of_its_model(kind, attention, loss):
    """On "meta", which holds no numbers, a tensor left on the CPU is an error, as on a GPU."""
    model = kind(50, max_len=8, dim=8, attention=attention, seed=0).to("meta").train()
    encoded = model.encode(torch.ones(4, 8, dtype=torch.int64, device="meta"))
    flat = [part.flatten(0, 1) for part in (encoded if kind.gaussian else [encoded])]
    targets = torch.ones(32, dtype=torch.int64, device="meta")
    negatives = None if loss == "ce" else targets[:, None]
    LOSSES[loss](model, tuple(flat) if kind.gaussian else flat[0], targets, negatives).backward()
    assert model.items.weight.grad.device.type == "meta"
    assert model.score(encoded).device.type == "meta"


def test_a_second_derivative_is_refused_rather_than_wrong():
    queries, table = torch.randn(4, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    loss = losses.chunked_cross_entropy(queries, table, torch.tensor([1, 2, 3, 4]))
    with pytest.raises(RuntimeError, match="the chunked loss has no second derivative"):
        torch.autograd.grad(loss, queries, create_graph=True)
    assert torch.autograd.grad(loss, queries)[0].isfinite().all()


@pytest.mark.parametrize("items", [1, 400, 3_416, 12_101, 10**7])
def test_a_chunk_is_neither_too_small_for_a_product_nor_too_large_for_a_cache(items):
    rows = losses._chunk(items, least=64)
    assert 64 <= rows <= 512 and rows % 64 == 0
    assert rows * items <= 2**20 or rows == 64
