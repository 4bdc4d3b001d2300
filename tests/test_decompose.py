"""The decomposition adds up, and agrees with the tensor of all terms written out."""

import dataclasses
import importlib

import pytest
import torch

import seqrec_lib as sr

module = importlib.import_module("seqrec_lib.analysis.decompose")
ITEMS = torch.tensor([[0, 0, 0, 3, 1, 4], [2, 5, 9, 2, 6, 5], [0, 0, 0, 0, 0, 7]])
SASREC_WEIGHTINGS = [name for name, kind in sr.WEIGHTINGS.items() if not kind.gaussian]


def model(kind=sr.SASRec, **settings):
    """Every parameter is random: biases and LayerNorms that are 0 and 1 would hide mistakes."""
    settings = {"num_items": 9, "max_len": 7, "dim": 8, "seed": 0, **settings}
    made = kind(**settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def all_terms(layer):
    """(B, query, key, D) of each kind but the weights, in float64, from the definitions."""
    weights, values = layer.weights.double(), layer.values.double()
    width = values.shape[-1]
    eye = torch.eye(values.shape[1] * width, dtype=torch.float64)
    matrix = eye if layer.projection is None else layer.projection.weight.detach().double().T
    bias = torch.zeros(len(matrix)) if layer.projection is None else layer.projection.bias.detach()
    bias, attn = bias.double(), 0
    for h in range(values.shape[1]):
        vectors = values[:, h] @ matrix[h * width : (h + 1) * width]  # f^h(x_j)
        attn = attn + weights[:, h, :, :, None] * vectors[:, None]
    attn_res = attn.clone()
    for i in range(attn.shape[1]):
        attn_res[:, i, i] += layer.residual.double()[:, i]
    norm, z = layer.reading_norm, attn_res.sum(2) + bias
    sigma = (z.var(-1, correction=0) + norm.eps).sqrt()[:, :, None, None]
    gamma, beta = norm.weight.detach().double(), norm.bias.detach().double()
    centred = attn_res - attn_res.mean(-1, keepdim=True)
    ln_bias = gamma * (bias - bias.mean()) / sigma[:, :, 0] + beta
    return {
        "attn": (attn, bias),
        "attn_res": (attn_res, bias),
        "attn_res_ln": (gamma * centred / sigma, ln_bias),
    }


def check_against_all_terms(layer):
    parts, real = sr.decompose(layer), layer.allowed.any(1).any(-1)
    for kind, (terms, bias) in all_terms(layer).items():
        part, norms = parts[kind], terms.norm(dim=-1) * real[:, :, None]
        assert error(part.norms, norms) < 1e-5
        own = torch.diagonal(terms, dim1=1, dim2=2).transpose(1, 2)
        others = terms.sum(2) - own
        assert torch.allclose(part.preserving.double(), own, atol=1e-5)
        assert torch.allclose(part.mixing.double(), others, atol=1e-5)
        assert torch.allclose(part.bias.double(), bias, atol=1e-5)
        m, p = others.norm(dim=-1), own.norm(dim=-1)
        assert torch.allclose(part.mixing_ratio.double()[real], (m / (m + p))[real], atol=1e-5)
        assert part.mixing_ratio[~real].isnan().all()
        assert torch.allclose(part.terms(1, 4).double(), terms[1, 4], atol=1e-5)
        assert torch.allclose(part.norms_among(3), part.norms[:, -3:, -3:], atol=1e-7)


@pytest.mark.parametrize("norm", ["post", "pre", "original"])
@pytest.mark.parametrize("attention", [*SASREC_WEIGHTINGS, "uniform-loose"])
@pytest.mark.parametrize("num_heads", [1, 4])
def test_everything_adds_up_to_what_the_block_computed(norm, attention, num_heads):
    m = model(norm=norm, attention=attention, num_heads=num_heads)
    for layer in sr.capture(m, ITEMS):
        parts = sr.decompose(layer)
        expected = {
            "attn": layer.outputs,
            "attn_res": layer.total,
            "attn_res_ln": layer.reading_norm(layer.total).detach(),
        }
        for kind, output in expected.items():
            part = parts[kind]
            assert error(part.total, output) < 1e-5
            assert error(part.preserving + part.mixing + part.bias, output) < 1e-5
            bias = part.bias[1, 4] if kind == "attn_res_ln" else part.bias
            assert error(part.terms(1, 4).sum(0) + bias, output[1, 4]) < 1e-5


@pytest.mark.parametrize("norm", ["post", "pre", "original"])
@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_the_gram_form_agrees_with_all_terms_written_out(norm, num_heads):
    for layer in sr.capture(model(norm=norm, num_heads=num_heads), ITEMS):
        if norm == "original":
            assert layer.projection is None
        check_against_all_terms(layer)


def test_slices_of_the_batch_change_nothing(monkeypatch):
    layer = sr.capture(model(num_heads=2), ITEMS)[0]
    whole = sr.decompose(layer)
    monkeypatch.setattr(module, "_CELLS", 1)
    sliced = sr.decompose(layer)
    assert torch.equal(sliced.attn.norms, whole.attn.norms)
    assert torch.allclose(sliced.attn.mixing, whole.attn.mixing, atol=1e-7)


def test_heads_that_cancel_leave_what_is_left_of_them():
    """Two heads bring opposite vectors that differ in the fourth digit."""
    m = model(num_heads=2, attention="uniform")
    attention = m.blocks[0].attention
    with torch.no_grad():
        attention.value.weight[4:] = attention.value.weight[:4]
        attention.value.bias[4:] = attention.value.bias[:4]
        attention.output.weight[:, 4:] = -attention.output.weight[:, :4] * 1.0001
    layer = sr.capture(m, ITEMS)[0]
    check_against_all_terms(layer)
    (terms, _), part = all_terms(layer)["attn"], sr.decompose(layer).attn
    one_head = (layer.values[:, :1].double() @ attention.output.weight[:, :4].double().T)[:, 0]
    seen = terms.norm(dim=-1) > 0
    assert terms.norm(dim=-1)[seen].max() < 1e-3 * one_head.norm(dim=-1).max()
    each = (part.norms.double()[seen] / terms.norm(dim=-1)[seen] - 1).abs()
    assert each.max() < 1e-5


@pytest.mark.parametrize("kind", ["attn", "attn_res", "attn_res_ln"])
def test_one_changed_weight_breaks_the_sum(kind):
    layer = sr.capture(model(num_heads=2), ITEMS)[1]
    output = {
        "attn": layer.outputs,
        "attn_res": layer.total,
        "attn_res_ln": layer.reading_norm(layer.total).detach(),
    }[kind]
    layer.weights[1, 0, 4, 2] += 0.1
    total = sr.decompose(layer)[kind].total
    assert error(total[1, 4], output[1, 4]) > 1e-3
    total[1, 4] = output[1, 4]
    assert error(total, output) < 1e-5  # and nothing else


def test_by_hand():
    """One head, two dimensions, W_V = W_O = I: the terms are weights times inputs."""
    layer = sr.LayerTrace(
        weights=torch.tensor([[[[1.0, 0], [0.9, 0.1]]]]),
        values=torch.tensor([[[[0.1, 0], [3.0, 4.0]]]]),
        allowed=torch.ones(2, 2).tril().bool()[None, None],
        residual=torch.tensor([[[1.0, 1.0], [0.7, -0.4]]]),
    )
    parts = sr.decompose(layer)
    assert torch.allclose(parts.weights.mixing_ratio, torch.tensor([[0, 0.9]]))
    assert torch.allclose(parts.attn.norms, torch.tensor([[[0.1, 0], [0.09, 0.5]]]))
    assert torch.allclose(parts.attn.mixing_ratio, torch.tensor([[0, 0.09 / 0.59]]))
    assert torch.allclose(parts.attn_res.preserving[0, 1], torch.tensor([1.0, 0]))
    assert torch.allclose(parts.attn_res.mixing_ratio, torch.tensor([[0, 0.09 / 1.09]]))
    with pytest.raises(ValueError, match="reading_norm, total"):
        _ = parts.attn_res_ln


def test_mixing_is_nan_at_padding_and_zero_where_there_is_nobody_else():
    parts = sr.decompose(sr.capture(model(num_heads=2), ITEMS)[0])
    for kind in module.KINDS:
        ratio = parts[kind].mixing_ratio
        assert torch.equal(ratio.isnan(), ITEMS == 0)
        assert ratio[0, 3] == ratio[1, 0] == ratio[2, 5] == 0
        assert (ratio[1, 1:] > 0).all() and (ratio[1, 1:] < 1).all()


def test_weights_are_averaged_over_heads():
    layer = sr.capture(model(num_heads=2), ITEMS)[0]
    part, weights = sr.decompose(layer).weights, layer.weights.mean(1)
    assert torch.equal(part.norms, weights)
    own = weights.diagonal(dim1=1, dim2=2)
    real = ITEMS > 0
    assert torch.allclose(part.mixing_ratio[real], (1 - own)[real], atol=1e-6)
    assert torch.equal(part.terms(1, 3), weights[1, 3])


def test_the_last_weighting_mixes_nothing():
    parts = sr.decompose(sr.capture(model(attention="last"), ITEMS)[0])
    for kind in module.KINDS:
        assert (parts[kind].mixing_ratio[ITEMS > 0] == 0).all()


def test_a_scaled_residual_is_decomposed_as_it_acts():
    m = model(num_heads=2)
    plain = sr.decompose(sr.capture(m, ITEMS)[0]).attn_res.mixing_ratio[1, -1]
    with sr.intervene(m, sr.ScaleResidual(0.1)):
        layer = sr.capture(m, ITEMS)[0]
    check_against_all_terms(layer)
    assert sr.decompose(layer).attn_res.mixing_ratio[1, -1] > plain


@pytest.mark.parametrize("attention", ["wasserstein", "awrsr-stochastic", "uniform"])
def test_both_paths_of_stosa_add_up(attention):
    for layer in sr.capture(model(sr.STOSA, num_heads=2, attention=attention), ITEMS):
        for path in (layer, layer.covariance):
            parts = sr.decompose(path)
            assert error(parts.attn.total, path.outputs) < 1e-5
            assert error(parts.attn_res.total, path.total) < 1e-5
            normed = path.reading_norm(path.total).detach()
            assert error(parts.attn_res_ln.total, normed) < 1e-5
            check_against_all_terms(path)


def test_layer_norms_without_parameters_are_read_too():
    layer = sr.capture(model(), ITEMS)[0]
    bare = dataclasses.replace(layer, reading_norm=torch.nn.LayerNorm(8, elementwise_affine=False))
    assert error(sr.decompose(bare).attn_res_ln.total, bare.reading_norm(layer.total)) < 1e-5


def test_what_is_no_number_is_no_absence_of_mixing():
    m = model()
    with torch.no_grad():
        m.blocks[0].attention.value.weight[0, 0] = torch.nan
    parts = sr.decompose(sr.capture(m, ITEMS)[0])
    for kind in ("attn", "attn_res", "attn_res_ln"):
        assert parts[kind].mixing_ratio[1].isnan().all()
    assert parts["weights"].mixing_ratio[1].isfinite().all()  # of which values are no part


def test_no_tensor_of_all_terms_is_built():
    """Every intermediate tensor stays below B H L^2 (D/4): the reference's has D times as many."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        cells = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if torch.is_tensor(tensor):
                    self.cells = max(self.cells, tensor.untyped_storage().nbytes() // 4)
            return out

    m = sr.SASRec(50, max_len=64, dim=64, num_blocks=1, num_heads=2, seed=0)
    items = torch.randint(1, 51, (4, 64))
    layer = sr.capture(m, items)[0]
    with Largest() as largest:
        parts = sr.decompose(layer)
        for kind in module.KINDS:
            assert parts[kind].norms.shape == (4, 64, 64)
            assert parts[kind].mixing_ratio.shape == (4, 64)
    assert largest.cells <= 2 * 4 * 2 * 64 * 64  # B H L^2 numbers of float64
