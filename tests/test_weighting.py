"""Properties that every way of making attention weights must have, in every model.

A weighting that is added to ``WEIGHTINGS`` is tested here by its name.
"""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import seqrec_lib as sr
from seqrec_lib.models import weighting as w
from seqrec_lib.training.losses import ce

NUM_ITEMS, MAX_LEN = 7, 6
REFINED = [name for name, kind in sr.WEIGHTINGS.items() if issubclass(kind, w.Refined)]
SPECS = [
    *sr.WEIGHTINGS,
    *({"name": name, "reading": "weights", "width": 3} for name in REFINED),
    {"name": "awrsr-additive", "threshold": 0.2},
    {"name": "shuffled", "seed": 4},
    {"name": "random", "seed": 4},
]


def named(spec):
    return {"name": spec} if isinstance(spec, str) else spec


def kind_of(spec):
    return sr.WEIGHTINGS[named(spec)["name"]]


CASES = [
    pytest.param(kind, spec, id="-".join([kind.__name__, *map(str, named(spec).values())]))
    for kind in (sr.SASRec, sr.STOSA)
    for spec in SPECS
    if kind.gaussian or not kind_of(spec).gaussian
]


def build(kind, spec, **settings):
    settings = {"dim": 8, "num_heads": 2, "dropout": 0.0, "seed": 0, **settings}
    return kind(NUM_ITEMS, max_len=MAX_LEN, attention=spec, **settings).eval()


@functools.cache
def _shared(kind, spec):
    return build(kind, dict(spec))


def shared(kind, spec):
    """One model per case: building it anew for every example would take the time."""
    return _shared(kind, tuple(named(spec).items()))


@st.composite
def batches(draw, min_size=1):
    """Items (B, L) with padding on the left; some rows may be all padding."""
    length = draw(st.integers(min_size, MAX_LEN))
    rows = draw(
        st.lists(st.lists(st.integers(1, NUM_ITEMS), max_size=length), min_size=1, max_size=3)
    )
    return torch.tensor([[0] * (length - len(row)) + row for row in rows])


def joined(encoded):
    """STOSA's mean and covariance, or SASRec's only tensor, as one."""
    return encoded if torch.is_tensor(encoded) else torch.cat(encoded, -1)


def recorded(model, items, what="weights"):
    """What each block's attention reported of one forward pass."""
    seen = []
    for block in model.blocks:
        block.attention.recorder = lambda **tensors: seen.append(tensors)
    with torch.no_grad():
        model.encode(items)
    for block in model.blocks:
        block.attention.recorder = None
    return [tensors[what] for tensors in seen]


generated = settings(max_examples=12)


@pytest.mark.parametrize(("kind", "spec"), CASES)
@generated
@given(items=batches())
def test_rows_sum_to_one_on_allowed_keys_and_are_zero_elsewhere(kind, spec, items):
    place = torch.arange(items.shape[1])
    real = items > 0
    allowed = (place[:, None] >= place) & real[:, None, :] & real[:, :, None]
    for weights in recorded(shared(kind, spec), items):
        assert weights.shape == (len(items), 2, items.shape[1], items.shape[1])
        assert (weights >= 0).all()
        assert (weights[~allowed[:, None].expand_as(weights)] == 0).all()
        assert torch.allclose(weights.sum(-1), real[:, None].expand(-1, 2, -1).float(), atol=1e-5)


def moved_by_the_future(model, items, last):
    """The most that any output up to slot ``last`` changes when all later items do."""
    other = items.clone()
    other[:, last + 1 :] = items[:, last + 1 :] % NUM_ITEMS + 1
    with torch.no_grad():
        before, after = (joined(model.encode(x))[:, : last + 1] for x in (items, other))
    return float((before - after).abs().max())


@pytest.mark.parametrize(("kind", "spec"), CASES)
@generated
@given(items=batches(min_size=2), data=st.data())
def test_nothing_from_the_future_moves_the_past(kind, spec, items, data):
    last = data.draw(st.integers(0, items.shape[1] - 2))
    # Real items stay real and padding stays padding, so that only the future differs.
    items[:, last + 1 :] = items[:, last + 1 :].clamp(min=1)
    assert moved_by_the_future(shared(kind, spec), items, last) < 1e-6


class NotMaskedAgain(w.RefinedSimple):
    """Leaks: the refined scores of later keys are not hidden."""

    def forward(self, scores, allowed):
        tokens = scores.masked_fill(~allowed, 0.0)
        return w.masked_softmax(self.refine(tokens, scores, allowed), torch.ones_like(allowed))


class TokensFromUnmaskedScores(w.RefinedSimple):
    """Leaks: a token holds the query's scores of later keys."""

    def forward(self, scores, allowed):
        return w.masked_softmax(self.refine(scores, scores, allowed), allowed)


class KeySideTokens(w.RefinedSimple):
    """Leaks: a key's token is its column, which later queries have written."""

    def forward(self, scores, allowed):
        rows = scores.masked_fill(~allowed, 0.0)
        refined = (rows @ self.w_query) @ (rows.mT @ self.w_key).mT / math.sqrt(MAX_LEN)
        return w.masked_softmax(refined, allowed)


@pytest.mark.parametrize("kind", [sr.SASRec, sr.STOSA])
@pytest.mark.parametrize("leak", [NotMaskedAgain, TokensFromUnmaskedScores, KeySideTokens])
def test_the_test_of_causality_fails_on_each_leaking_variant(kind, leak):
    items = torch.tensor([[3, 1, 4, 1, 5, 2]])
    assert moved_by_the_future(build(kind, leak()), items, last=2) > 1e-4
    assert moved_by_the_future(build(kind, "awrsr-simple"), items, last=2) < 1e-6


@pytest.mark.parametrize(("kind", "spec"), CASES)
@generated
@given(items=batches())
def test_padding_and_neighbours_change_nothing(kind, spec, items):
    """In particular the trailing part of a refinement's matrices does what full padding does."""
    model = shared(kind, spec)
    full = torch.nn.functional.pad(items, (MAX_LEN - items.shape[1], 0))
    with torch.no_grad():
        short, padded = joined(model.encode(items)), joined(model.encode(full))
        alone = torch.cat([joined(model.encode(row[None])) for row in items])
    real = items > 0
    assert torch.allclose(short[real], padded[:, -items.shape[1] :][real], atol=2e-5)
    assert torch.allclose(short[real], alone[real], atol=2e-5)


ITEMS = torch.tensor([[3, 1, 4, 1, 5, 2], [0, 0, 2, 6, 5, 3], [7, 6, 5, 4, 3, 2]])


def without_gradient(model):
    """The names of the parameters that the loss, over all positions, does not reach."""
    encoded = model.encode(ITEMS)
    flat = encoded.flatten(0, 1) if torch.is_tensor(encoded) else [x.flatten(0, 1) for x in encoded]
    ce(model, flat, torch.arange(ITEMS.numel()) % NUM_ITEMS + 1).backward()
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }


@pytest.mark.parametrize(("kind", "spec"), CASES)
def test_gradients_reach_every_parameter_that_is_used(kind, spec):
    model = build(kind, spec)
    unused = without_gradient(model)
    if kind_of(spec).uses_scores:
        # A key's bias adds the same to all of a query's dot products: softmax does not see it,
        # but for rounding.
        if kind_of(spec) in (w.Softmax, w.Shuffled):
            unused = {name for name in unused if not name.endswith("key.bias")}
        assert not unused
    else:
        endings = tuple(
            f"{which}.{what}" for which in ("query", "key") for what in ("weight", "bias")
        )
        assert unused == {name for name, _ in model.named_parameters() if name.endswith(endings)}


def test_without_mean_attention_the_path_of_the_means_is_unused():
    unused = without_gradient(build(sr.STOSA, "wasserstein", mean_attention=False))
    modules = (
        "attention.value",
        "attention.output",
        "norm_attention",
        "norm_feed_forward",
        "feed_forward.0",
        "feed_forward.2",
    )
    assert unused == {
        f"blocks.{layer}.{module}.{what}"
        for layer in (0, 1)
        for module in modules
        for what in ("weight", "bias")
    }


@pytest.mark.parametrize("kind", [sr.SASRec, sr.STOSA])
@pytest.mark.parametrize("reading", ["scores", "weights"])
def test_additive_refinement_with_a_zero_value_matrix_is_no_refinement(kind, reading):
    plain = build(kind, "wasserstein" if kind.gaussian else "softmax", dropout=0.5)
    refined = build(kind, {"name": "awrsr-additive", "reading": reading}, dropout=0.5)
    for block in refined.blocks:
        torch.nn.init.zeros_(block.attention.weighting.w_value)
    for training in (False, True):
        outputs = []
        for model in (plain, refined):
            torch.manual_seed(1)
            outputs.append(joined(model.train(training).encode(ITEMS)))
        assert torch.equal(*outputs)


@pytest.mark.parametrize("kind", [sr.SASRec, sr.STOSA])
@pytest.mark.parametrize("seed", [3, None])
def test_models_that_differ_in_weighting_alone_start_equal(kind, seed):
    states = []
    for spec in SPECS:
        if kind.gaussian or not kind_of(spec).gaussian:
            torch.manual_seed(5)
            states.append(build(kind, spec, seed=seed).state_dict())
    plain = next(state for state in states if not any("weighting" in key for key in state))
    for state in states:
        assert plain.keys() <= state.keys()
        assert all(torch.equal(plain[key], state[key]) for key in plain)


def test_random_weights_of_padding_are_zero_in_half_precision_too():
    model = build(sr.SASRec, "random").half()
    assert model.encode(torch.tensor([[0, 0, 1, 2]])).isfinite().all()


@pytest.mark.parametrize(("kind", "spec"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_nan(kind, spec, dtype):
    model = build(kind, spec).to(dtype).train()
    for items in (
        ITEMS,
        torch.tensor([[2]]),
        torch.tensor([[0, 0, 0, 0, 0, 4], [0] * 6]),
        torch.zeros(2, 1, dtype=torch.long),
    ):
        model.zero_grad()
        encoded = joined(model.encode(items))
        assert encoded.dtype == dtype and encoded.isfinite().all()
        assert not model(items).isnan().any()
        encoded.float().square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", [sr.SASRec, sr.STOSA])
def test_shuffled_keeps_each_rows_weights(kind):
    model = build(kind, "shuffled")
    scores, allowed = recorded(model, ITEMS, "scores")[0], recorded(model, ITEMS, "allowed")[0]
    plain = w.masked_softmax(scores, allowed)
    shuffled = recorded(model, ITEMS)[0]
    assert torch.allclose(plain.sort(-1).values, shuffled.sort(-1).values, atol=1e-7)
    assert not torch.allclose(plain, shuffled)


@pytest.mark.parametrize("name", ["shuffled", "random"])
def test_fixed_draws_depend_on_seed_layer_head_and_position_from_the_end_alone(name):
    scores = torch.randn(1, 2, MAX_LEN, MAX_LEN, generator=torch.Generator().manual_seed(0))
    scores[:, 1] = scores[:, 0]  # the heads differ in their draws alone
    allowed = torch.ones(1, 2, MAX_LEN, MAX_LEN, dtype=torch.bool).tril()

    def weights(seed=0, layer=0, num_heads=2, max_len=MAX_LEN):
        made = w.make_weighting({"name": name, "seed": seed}).build(layer, num_heads, max_len)
        return made(scores[:, :num_heads], allowed[:, :num_heads])

    first = weights()
    assert torch.equal(first, weights())
    assert torch.equal(first, weights(max_len=MAX_LEN + 3))
    assert torch.equal(first[:, :1], weights(num_heads=1))
    for other in (weights(seed=1), weights(layer=1), first.flip(1)):
        assert not torch.allclose(first, other)


@pytest.mark.parametrize(("kind", "spec"), CASES)
def test_save_and_load(kind, spec, tmp_path):
    model = build(kind, spec)
    with torch.no_grad():
        for parameter in model.parameters():  # not what the constructor would draw
            parameter += 0.1 * torch.randn_like(parameter)
    sr.save(model, tmp_path / "model.safetensors")
    again = sr.load(tmp_path / "model.safetensors")
    assert again.config == model.config
    assert torch.equal(joined(again.encode(ITEMS)), joined(model.encode(ITEMS)))


# ------------------------------------------------------------ each against its definition


def loops(scores, module):
    """The refined scores of one map (L, L), entry by entry, for the last rows of the matrices."""
    length = len(scores)
    visible = np.tril(np.ones((length, length), bool))
    exponential = np.exp(scores) * visible
    weights = exponential / exponential.sum(1, keepdims=True)
    tokens = np.where(visible, scores, 0.0) if module.reading == "scores" else weights
    part = {name: p.detach().double().numpy()[-length:] for name, p in module.named_parameters()}
    query, key = tokens @ part["w_query"], tokens @ part["w_key"]
    m = query.shape[1]
    if module.name == "awrsr-stochastic":

        def std(matrix):
            x = tokens @ part[matrix]
            return np.sqrt(np.maximum(np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))), 1e-6))

        query_std, key_std = std("w_query_scale"), std("w_key_scale")
        return np.array(
            [
                [
                    -(((query[i] - key[j]) ** 2).sum() + ((query_std[i] - key_std[j]) ** 2).sum())
                    / math.sqrt(m)
                    for j in range(length)
                ]
                for i in range(length)
            ]
        )
    simple = np.array(
        [[query[i] @ key[j] / math.sqrt(m) for j in range(length)] for i in range(length)]
    )
    if module.name == "awrsr-simple":
        return simple
    refined = np.zeros((length, length))
    for i in range(length):
        mixing = np.exp(simple[i, : i + 1])
        for j, share in enumerate(mixing / mixing.sum()):
            refined[i] += share * (tokens[j] @ part["w_value"][:, -length:])
    return scores + refined if module.name == "awrsr-additive" else refined


@pytest.mark.parametrize("name", REFINED)
@pytest.mark.parametrize("reading", ["scores", "weights"])
@given(seed=st.integers(0, 1000), length=st.integers(1, MAX_LEN), width=st.integers(1, 8))
@settings(max_examples=20)
def test_refinements_follow_their_definitions(name, reading, seed, length, width):
    torch.manual_seed(seed)
    module = w.make_weighting({"name": name, "reading": reading, "width": width})
    module.build(0, 1, MAX_LEN).double()
    scores = torch.randn(1, 1, length, length, dtype=torch.float64)
    allowed = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    expected = w.masked_softmax(torch.tensor(loops(scores[0, 0].numpy(), module)), allowed[0, 0])
    assert torch.allclose(module(scores, allowed)[0, 0], expected, atol=1e-10)


def test_controls_follow_their_definitions():
    allowed = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    made = {name: w.make_weighting(name).build(0, 1, MAX_LEN) for name in sr.WEIGHTINGS}
    assert torch.allclose(made["uniform"](None, allowed)[0, 0, 2], torch.tensor([1, 1, 1, 0]) / 3)
    assert torch.equal(made["last"](None, allowed)[0, 0], torch.eye(4))
    assert torch.allclose(made["positional"](None, allowed), made["uniform"](None, allowed))
    with torch.no_grad():
        made["recency"].rate.fill_(math.log(math.e - 1))  # softplus of it is 1
        made["positional"].map[-1, -2] = math.log(3.0)
    decay = torch.tensor([-3.0, -2.0, -1.0, 0.0]).exp()
    assert torch.allclose(made["recency"](None, allowed)[0, 0, 3], decay / decay.sum())
    assert torch.allclose(
        made["positional"](None, allowed)[0, 0, 3], torch.tensor([1, 1, 3, 1]) / 6
    )


@pytest.mark.parametrize("length", [1, 4, MAX_LEN])
def test_scores_beside_a_map_are_torch_s_attention_with_a_bias(length):
    made = w.make_weighting("softmax-positional").build(0, 2, MAX_LEN).double()
    query, key, value = torch.randn(3, 3, 2, length, 5, dtype=torch.float64)
    scores = query @ key.mT / math.sqrt(5)
    allowed = torch.ones(3, 2, length, length, dtype=torch.bool).tril()
    assert torch.equal(made(scores, allowed), w.masked_softmax(scores, allowed))  # M starts at 0
    torch.nn.init.normal_(made.map)
    bias = made.map[-length:, -length:].masked_fill(~allowed, -math.inf)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    assert torch.allclose(made(scores, allowed) @ value, expected, atol=1e-12)


def test_a_threshold_keeps_only_like_tokens():
    scores = torch.randn(2, 1, 5, 5)
    allowed = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()

    def weights(threshold):
        torch.manual_seed(0)
        made = w.make_weighting({"name": "awrsr-additive", "threshold": threshold})
        return made.build(0, 1, MAX_LEN)(scores, allowed)

    assert torch.equal(weights(-1.1), weights(None))
    assert torch.equal(weights(1.1), torch.eye(5).expand(2, 1, 5, 5))
    tokens = torch.nn.functional.normalize(scores.masked_fill(~allowed, 0.0), dim=-1)
    like = tokens @ tokens.mT >= 0.3
    kept = weights(0.3) > 0
    assert torch.equal(kept, allowed & (like | torch.eye(5, dtype=torch.bool)))


def test_a_weighting_is_named_described_or_given():
    spec = {"name": "awrsr-value", "reading": "weights"}
    model = build(sr.SASRec, w.RefinedValue(reading="weights"))
    assert model.config["attention"] == spec
    other = build(sr.SASRec, spec)
    assert torch.equal(model.encode(ITEMS), other.encode(ITEMS))
    given_object = w.Positional()
    blocks = build(sr.SASRec, given_object).blocks
    assert len({id(block.attention.weighting) for block in blocks} | {id(given_object)}) == 3


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="no weighting is called 'softmx'; there are: softmax"):
        sr.SASRec(10, attention="softmx")
    with pytest.raises(ValueError, match="reading must be 'scores' or 'weights', not 'rows'"):
        sr.SASRec(10, attention={"name": "awrsr-simple", "reading": "rows"})
    for spec, said in (
        ({"name": "softmax", "temperature": 0.1}, "'softmax' has no setting temperature; .* none"),
        ({"name": "shuffled", "sed": 3}, "'shuffled' has no setting sed; it has seed"),
        ({"name": "awrsr-value", "rate": 3}, "no setting rate; it has reading, width, threshold"),
    ):
        with pytest.raises(ValueError, match=said):
            sr.SASRec(10, attention=spec)
    with pytest.raises(TypeError, match="Recency has no settings, got rate"):
        w.Recency(rate=3)
    with pytest.raises(NotImplementedError, match="Weighting must define forward"):
        w.Weighting()(None, None)


def test_what_is_no_weighting_is_refused_by_name():
    with pytest.raises(ValueError, match="a name with settings or an object, not None"):
        sr.SASRec(9, attention=None)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        sr.SASRec(9, attention={"name": "awrsr-simple", "width": 0})


@pytest.mark.parametrize("attention", ["awrsr-additive", "recency", "random"])
def test_a_model_of_another_precision_takes_any_weighting(attention):
    m = sr.SASRec(9, max_len=7, dim=8, seed=0).double()
    m.set_weighting(attention)
    assert m(torch.tensor([[1, 2, 3]])).dtype == torch.float64
