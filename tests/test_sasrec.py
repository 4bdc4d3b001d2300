"""SASRec against torch's own attention, and what must hold of any history it reads."""

import math

import pytest
import torch
from torch import nn

import seqrec_lib as sr

NORMS = ("post", "pre", "original")
NUM_ITEMS, MAX_LEN, DIM = 30, 9, 8
WEIGHTINGS = [name for name, kind in sr.WEIGHTINGS.items() if not kind.gaussian]


def make(norm="post", **options) -> sr.SASRec:
    """A small model in double precision, its vectors and norms far from their initial values."""
    options = {"num_heads": 2, "max_len": MAX_LEN, "dim": DIM, "seed": 0, **options}
    model = sr.SASRec(NUM_ITEMS, norm=norm, **options).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter += 0.3 * noise
        model.items.weight[0] = 0
    return model


def histories(*lengths: int, width: int = MAX_LEN) -> torch.Tensor:
    """Random items, padded on the left, one row for each length."""
    generator = torch.Generator().manual_seed(2)
    items = torch.randint(1, NUM_ITEMS + 1, (len(lengths), width), generator=generator)
    return items * (torch.arange(width) >= width - torch.tensor(lengths)[:, None])


def torch_attention(ours: sr.models.Attention, dim: int) -> nn.MultiheadAttention:
    """torch's layer with the same weights; the identity where ours has no output projection."""
    theirs = nn.MultiheadAttention(dim, ours.num_heads, batch_first=True).double()
    parts = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.weight.copy_(torch.eye(dim) if ours.output is None else ours.output.weight)
        theirs.out_proj.bias.copy_(torch.zeros(dim) if ours.output is None else ours.output.bias)
    return theirs


def reference(model: sr.SASRec, items: torch.Tensor) -> torch.Tensor:
    """The scores of all items, written down from the definitions, on nn.MultiheadAttention."""
    norm, length = model.config["norm"], items.shape[1]
    forbidden = torch.ones(length, length, dtype=torch.bool).triu(1) | (items == 0)[:, None, :]
    # not -inf, which gives NaN in rows of padding
    mask = (forbidden * -1e9).double().repeat_interleave(model.num_heads, 0)
    x = model.items.weight[items] * math.sqrt(model.dim)
    x = x + model.positions[model.max_len - length :]
    if norm == "post":
        x = model.norm(x)
    for block in model.blocks:
        layer, f = torch_attention(block.attention, model.dim), block.feed_forward
        ln1, ln2 = block.norm_attention, block.norm_feed_forward

        def g(queries, keys, layer=layer):
            return layer(queries, keys, keys, attn_mask=mask, need_weights=False)[0]

        if norm == "post":
            x = ln1(x + g(x, x))
            x = ln2(x + f(x))
        elif norm == "pre":
            x = x + g(ln1(x), ln1(x))
            x = x + f(ln2(x))
        else:
            q = ln1(x)
            x = ln2(q + g(q, x))
            x = x + f(x)
    x = x if norm == "post" else model.norm(x)
    return x @ model.items.weight.T


# --- the same as a straightforward implementation ----------------------------------------------


@pytest.mark.parametrize("width", [MAX_LEN, 5])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("norm", NORMS)
def test_equals_torch_attention(norm, heads, width):
    model, items = make(norm, num_heads=heads), histories(width, 3, 1, width=width)
    real = items > 0
    scores, expected = model(items)[real], reference(model, items)[real]
    assert scores[:, 1:].std() > 0.1
    torch.testing.assert_close(scores[:, 1:], expected[:, 1:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_equal_torch_attention(norm):
    model, items = make(norm), histories(9, 3, 1)

    def gradients(scores):
        scores[items > 0][:, 1:].logsumexp(-1).sum().backward()
        kept = (model.items.weight, model.positions, model.blocks[0].norm_attention.weight)
        found = [parameter.grad.clone() for parameter in kept]
        model.zero_grad()
        return found

    for ours, theirs in zip(
        gradients(model(items)), gradients(reference(model, items)), strict=True
    ):
        # padding_idx: the row of padding is not trained
        torch.testing.assert_close(ours[1:], theirs[1:], rtol=1e-8, atol=1e-9)


def test_norms_differ():
    items = histories(9)
    a, b, c = (make(norm)(items)[..., 1:] for norm in NORMS)
    assert not torch.allclose(a, b, atol=1e-2) and not torch.allclose(b, c, atol=1e-2)


# --- what must hold of every history -----------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_the_future_moves_no_earlier_output(norm):
    model, items = make(norm), histories(9, 6)
    encoded = model.encode(items)
    for cut in range(1, MAX_LEN):
        changed = items.clone()
        changed[:, cut:] = items[:, cut:] % NUM_ITEMS + 1
        again = model.encode(changed)
        real = items[:, :cut] > 0
        assert torch.equal(again[:, :cut][real], encoded[:, :cut][real])
        assert not torch.allclose(again[:, cut:], encoded[:, cut:], atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_every_earlier_item_moves_the_last_output(norm):
    model, items = make(norm), histories(9)
    last = model.encode(items)[0, -1]
    for place in range(MAX_LEN):
        changed = items.clone()
        changed[0, place] = items[0, place] % NUM_ITEMS + 1
        assert not torch.allclose(model.encode(changed)[0, -1], last, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("length", [1, 4])
def test_padding_length_changes_nothing(norm, length):
    model, items = make(norm), histories(length)
    encoded = model.encode(items)[:, -length:]
    for width in range(length, MAX_LEN):
        narrow = model.encode(items[:, -width:])[:, -length:]
        torch.testing.assert_close(narrow, encoded, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [False, True])
def test_neighbours_in_the_batch_change_nothing(norm, training):
    model, items = make(norm, dropout=0.0).train(training), histories(9, 1, 5, 0)
    alone = torch.cat([model.encode(row[None]) for row in items])
    real = items > 0
    torch.testing.assert_close(model.encode(items)[real], alone[real], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("attention", WEIGHTINGS)
@pytest.mark.parametrize("norm", NORMS)
def test_one_item_or_none_gives_no_nan(norm, attention):
    model = sr.SASRec(NUM_ITEMS, max_len=MAX_LEN, dim=DIM, norm=norm, attention=attention, seed=0)
    items = histories(1, 0, 9)
    encoded = model.train().encode(items)
    encoded.square().sum().backward()
    assert encoded.isfinite().all()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("kind", [sr.SASRec, sr.STOSA])
def test_items_may_lie_on_another_device(kind):
    """As when a model was left on a GPU; "meta" is a device that every machine has."""
    encoded = kind(NUM_ITEMS, max_len=MAX_LEN, dim=DIM).to("meta").encode(histories(9, 4))
    parts = (encoded,) if torch.is_tensor(encoded) else encoded
    assert all(part.device.type == "meta" and part.shape == (2, 9, DIM) for part in parts)


def test_dropout_acts_in_training_alone():
    model, items = make(dropout=0.5), histories(9)
    assert torch.equal(model.encode(items), model.encode(items))
    model.train()
    assert not torch.equal(model.encode(items), model.encode(items))


# --- scores and recommendations ----------------------------------------------------------------


def test_scores_are_products_with_the_item_embeddings():
    model, items = make(), histories(9, 4)
    encoded, scores = model.encode(items), model(items)
    assert scores.shape == (2, MAX_LEN, NUM_ITEMS + 1)
    assert (scores[..., 0] == -math.inf).all()
    torch.testing.assert_close(scores[1, -1, 7], encoded[1, -1] @ model.items.weight[7])
    table, bias = model.readout()
    assert bias is None and table.shape == (NUM_ITEMS + 1, DIM)
    assert torch.equal(model.score(model.queries(encoded)), scores)


def test_recommends_the_highest_scores():
    model, items = make(), histories(9, 4)
    ids, scores = model.recommend(items, k=5)
    expected = model(items)[:, -1].sort(descending=True)
    assert ids.shape == scores.shape == (2, 5) and not scores.requires_grad
    assert torch.equal(ids, expected.indices[:, :5])
    torch.testing.assert_close(scores, expected.values[:, :5])
    assert (model.recommend(items, k=NUM_ITEMS)[0] > 0).all()


def test_recommends_to_one_history_of_any_length():
    model, items = make(), histories(9)[0]
    long = torch.cat([torch.tensor([1, 2, 3]), items])
    expected = model.recommend(items[None])[0][0]
    assert torch.equal(model.recommend(long)[0], expected)
    assert torch.equal(model.recommend(items.tolist())[0], expected)


def test_recommends_nothing_from_scores_that_are_none():
    model = make()
    with torch.no_grad():
        model.blocks[0].norm_attention.weight[0] = torch.nan
    with pytest.raises(ValueError, match="scores are NaN"):
        model.recommend([1, 2, 3])


def test_recommending_leaves_each_module_in_its_mode():
    model = make().train()
    model.blocks[0].eval()
    model.recommend([1, 2, 3])
    assert model.training and model.dropout.training and not model.blocks[0].training


def test_recommends_nothing_seen_if_asked():
    model, items = make(), histories(9, 4)
    long = torch.cat([torch.tensor([[1, 2, 3], [0, 0, 0]]), items], 1)  # seen, though cut off
    ids, scores = model.recommend(long, k=15, exclude_seen=True)
    for row, history in zip(ids, long, strict=True):
        assert not set(row.tolist()) & set(history.tolist())
    assert scores.isfinite().all()
    with pytest.raises(ValueError, match="fewer than k"):
        model.recommend(long, k=NUM_ITEMS, exclude_seen=True)


def test_recommending_uses_no_dropout_and_leaves_the_mode():
    model, items = make(dropout=0.5).train(), histories(9)
    first, second = model.recommend(items)[1], model.recommend(items)[1]
    assert torch.equal(first, second) and model.training and model.blocks[0].training


@pytest.mark.parametrize(
    ("items", "k", "said"),
    [
        ([1, 2], 0, "between 1 and the number of items, 30"),
        ([1, 2], 31, "k=31"),
        ([1, 0], 3, "end in an item"),
        ([], 3, "end in an item"),
    ],
)
def test_recommend_refuses(items, k, said):
    with pytest.raises(ValueError, match=said):
        make().recommend(torch.tensor(items, dtype=torch.int64), k=k)


@pytest.mark.parametrize(
    ("items", "error", "said"),
    [
        ([1, 2, 31], ValueError, "no item 31; the model knows 1..30"),
        ([[1, 2], [-1, 2]], ValueError, "no item -1"),
        ([1.0, 2.0], TypeError, "whole numbers, not torch.float32"),
        ([True, False], TypeError, "whole numbers, not torch.bool"),
        ([1, 0, 3], ValueError, r"padding \(0\) follows item 1; padding stands on the left"),
        ([[0, 1, 2], [3, 4, 0]], ValueError, r"padding \(0\) follows item 4 in row 1"),
    ],
)
def test_items_from_users_are_checked(items, error, said):
    model = make()
    for read in (sr.SASRec.recommend, sr.capture, sr.removal_effects):
        with pytest.raises(error, match=said):
            read(model, items)


def test_targets_are_checked_and_any_whole_numbers_are_read():
    model, items = make(), histories(9, 4)
    with pytest.raises(ValueError, match="no item 31"):
        sr.item_contributions(model, items, [1, 31])
    for kind in (torch.int32, torch.uint8):
        assert torch.equal(model.recommend(items.to(kind))[1], model.recommend(items)[1])


# --- what is refused ---------------------------------------------------------------------------


def test_a_sequence_without_any_place_is_refused():
    with pytest.raises(ValueError, match="length 0"):
        make()(torch.zeros(1, 0, dtype=torch.int64))


def test_too_long_a_history_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"length 10 exceed max_len=9.*items\[:, -9:\]"):
        make().encode(torch.ones(2, 10, dtype=torch.int64))


def test_items_without_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"\(batch, length\), got shape \(4,\)"):
        make().encode(torch.tensor([1, 2, 3, 4]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_items": 0}, "num_items must be at least 1, got 0"),
        ({"max_len": 0}, "max_len must be at least 1"),
        ({"dim": 0}, "dim must be at least 1"),
        ({"max_len": 10.0}, "max_len must be a whole number, got 10.0"),
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"num_blocks": 0}, "num_blocks must be at least 1"),
        ({"dim": 10, "num_heads": 4}, "dim=10 cannot be divided among num_heads=4"),
        ({"norm": "layer"}, "norm must be one of post, pre, original, not 'layer'"),
        ({"attention": "hard"}, "no weighting is called 'hard'; there are: softmax"),
        ({"attention": "wasserstein"}, "made for Gaussians, and SASRec has none; use STOSA"),
    ],
)
def test_makes_no_model_of_nonsense(options, said):
    with pytest.raises(ValueError, match=said):
        sr.SASRec(**{"num_items": 5, **options})


# --- where a model starts ----------------------------------------------------------------------


def test_a_seed_gives_the_same_model_and_leaves_the_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b, c = (sr.SASRec(NUM_ITEMS, dim=DIM, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.items.weight, c.items.weight)


def test_without_a_seed_torchs_generator_decides():
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(sr.SASRec(NUM_ITEMS, dim=DIM))
    a, b, c = (model.items.weight for model in models)
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("norm", NORMS)
def test_models_that_differ_in_weighting_alone_start_equal(norm):
    softmax = dict(sr.SASRec(NUM_ITEMS, dim=DIM, norm=norm, seed=0).named_parameters())
    for attention in WEIGHTINGS:
        model = sr.SASRec(NUM_ITEMS, dim=DIM, norm=norm, seed=0, attention=attention)
        own = {name for name, _ in model.named_parameters()} - softmax.keys()
        assert all(".weighting." in name for name in own)
        shared = dict(model.named_parameters())
        assert all(torch.equal(shared[name], value) for name, value in softmax.items()), attention


def test_starts_at_the_loss_of_guessing():
    model = sr.SASRec(1000, max_len=MAX_LEN, dim=64, seed=0).eval()
    items = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:900].view(100, 9) + 1
    with torch.no_grad():
        encoded = model.encode(items)[:, :-1].flatten(0, 1)
        loss = sr.LOSSES["ce"](model, encoded, items[:, 1:].flatten())
    assert abs(float(loss) - math.log(1000)) < 0.1


def test_the_configuration_makes_the_model_again():
    options = dict(max_len=7, dim=12, num_blocks=3, num_heads=3, dropout=0.3, norm="pre",
                   attention={"name": "shuffled", "seed": 4})  # fmt: skip
    model = sr.SASRec(20, **options)
    assert model.config == {"num_items": 20, **options}
    again = sr.SASRec(**model.config)
    again.load_state_dict(model.state_dict())
    items = torch.randint(1, 21, (2, 7))
    assert torch.equal(model.eval()(items), again.eval()(items))
