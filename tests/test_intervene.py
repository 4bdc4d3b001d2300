"""Interventions: they do what they say, to the part they are told, and leave no trace."""

import copy

import numpy as np
import pytest
import torch

import seqrec_lib as sr
from seqrec_lib.data.interactions import Interactions, Ragged
from seqrec_lib.models.weighting import RefinedAdditive, Shuffled, Uniform

ITEMS = torch.tensor([[0, 0, 0, 3, 1, 4], [2, 5, 9, 2, 6, 5], [0, 0, 0, 0, 0, 7]])


def model(kind=sr.SASRec, **settings):
    settings = {"num_items": 9, "max_len": 7, "dim": 8, "num_heads": 2, "seed": 0, **settings}
    return kind(**settings).eval()


def tiny_split():
    rng = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(1, 10, (int(n),), generator=rng).tolist()
        for n in torch.randint(4, 9, (40,), generator=rng)
    ]
    return sr.leave_one_out(Interactions(Ragged.from_lists(rows), num_items=9, name="tiny"))


def snapshot(m):
    """Everything an intervention could leave behind."""
    return (
        [(name, id(module), module.training) for name, module in m.named_modules()],
        [(name, id(value)) for name, value in m.named_parameters()],
        [name for name, _ in m.named_buffers()],
        sorted(vars(m)),
        [sorted(vars(block)) for block in m.blocks],
        [block.residual_scale for block in m.blocks],
    )


def squared(weights, allowed):
    return weights**2


CHANGES = [
    "uniform",
    {"name": "shuffled", "seed": 3},
    Uniform(),
    RefinedAdditive(),
    squared,
    sr.RemovePosition(-2),
    sr.RemoveDistance(1),
    sr.ScaleResidual(0.5),
    sr.SwapPositions(-1, -3),
]


@pytest.mark.parametrize(
    "change", CHANGES, ids=lambda change: getattr(change, "__name__", str(change))
)
@pytest.mark.parametrize("kind", [sr.SASRec, sr.STOSA])
def test_an_intervention_changes_the_model_and_leaves_no_trace(change, kind):
    m = model(kind)
    before, expected = snapshot(m), m(ITEMS)
    random = torch.get_rng_state()
    with sr.intervene(m, change) as inside:
        assert inside is m
        changed = m(ITEMS)
    assert not torch.equal(changed[1], expected[1])
    assert changed.isfinite()[..., 1:].all()
    assert snapshot(m) == before
    assert torch.equal(m(ITEMS), expected)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    "change", CHANGES, ids=lambda change: getattr(change, "__name__", str(change))
)
def test_an_exception_inside_restores_the_model(change):
    m = model()
    before = snapshot(m)
    with pytest.raises(KeyboardInterrupt), sr.intervene(m, change):
        raise KeyboardInterrupt
    assert snapshot(m) == before


def test_swapping_in_uniform_is_a_uniform_model_with_the_same_parameters():
    trained, uniform = model(), model(attention="uniform")
    with sr.intervene(trained, "uniform"):
        assert torch.equal(trained(ITEMS), uniform(ITEMS))
        assert sr.capture(trained, ITEMS)[0].scores is None  # nothing asks for them any more
    other = model(attention="softmax")
    with sr.intervene(uniform, "softmax"):
        assert torch.equal(uniform(ITEMS), other(ITEMS))


def test_the_strict_form_is_strict():
    """Same parameters, same initial values, same draws; after training, too."""
    split, fits = tiny_split(), {}
    settings = dict(lr=1e-2, epochs=2, batch_size=16, patience=None, progress=False, device="cpu")
    for attention in ("softmax", "uniform"):
        m = model(attention=attention, dropout=0.3)
        start = copy.deepcopy(m.state_dict())
        fits[attention] = (start, m)
    (softmax_start, softmax), (uniform_start, uniform) = fits.values()
    assert list(softmax_start) == list(uniform_start)
    assert all(torch.equal(softmax_start[name], uniform_start[name]) for name in softmax_start)
    weights = [sr.capture(m, ITEMS)[0].weights for m in (softmax, uniform)]
    assert not torch.allclose(*weights)

    sr.fit(uniform, split, **settings)
    with sr.intervene(softmax, "uniform"):
        sr.fit(softmax, split, **settings)
        inside = sr.evaluate(softmax, split)
    assert inside == sr.evaluate(uniform, split)
    trained = uniform.state_dict()
    assert all(torch.equal(trained[name], value) for name, value in softmax.state_dict().items())
    # Queries and keys stayed where they were; what remains in use did not.
    assert torch.equal(
        trained["blocks.0.attention.query.weight"], uniform_start["blocks.0.attention.query.weight"]
    )
    assert not torch.equal(
        trained["blocks.0.attention.value.weight"], uniform_start["blocks.0.attention.value.weight"]
    )


@pytest.mark.parametrize("norm", ["post", "pre", "original"])
def test_the_loose_form_starts_where_the_strict_one_does_with_less(norm, tmp_path):
    strict = model(attention="uniform", norm=norm)
    loose = model(attention="uniform-loose", norm=norm)
    with torch.no_grad():  # what the loose form lacks; heads and scores make no difference
        for name, parameter in strict.blocks.named_parameters():
            if name.endswith(("attention.value.bias", "attention.output.bias")):
                parameter.zero_()
    assert torch.allclose(loose(ITEMS)[..., 1:], strict(ITEMS)[..., 1:], atol=1e-6)
    missing = set(strict.state_dict()) - set(loose.state_dict())
    kinds = {name.removeprefix("blocks.0.attention.") for name in missing if ".0." in name}
    expected = {"query.weight", "query.bias", "key.weight", "key.bias", "value.bias"}
    assert kinds == expected | ({"output.bias"} if norm != "original" else set())
    assert sr.capture(loose, ITEMS)[0].weights.shape[1] == 1
    assert loose.blocks[0].attention.dropout.p == 0
    sr.save(loose, tmp_path / "loose.safetensors")
    assert torch.equal(sr.load(tmp_path / "loose.safetensors")(ITEMS), loose(ITEMS))
    assert all(torch.equal(strict.items.weight, m.items.weight) for m in (strict, loose))


def test_the_loose_form_trains_and_has_no_scores_to_give_back():
    m = model(attention="uniform-loose")
    before = copy.deepcopy(m.blocks[0].attention.value.weight)
    sr.fit(m, tiny_split(), epochs=1, progress=False, device="cpu")
    assert not torch.equal(m.blocks[0].attention.value.weight, before)
    with pytest.raises(ValueError, match="neither queries nor keys"), sr.intervene(m, "softmax"):
        m(ITEMS)
    with sr.intervene(m, sr.RemoveDistance(1)):
        m(ITEMS)
    with pytest.raises(ValueError, match="strict form"):
        model(sr.STOSA, attention="uniform-loose")


def test_layers_and_heads_are_chosen():
    m = model()
    plain = sr.capture(m, ITEMS)
    with sr.intervene(m, "uniform", layers=-1, heads=[0]):
        trace = sr.capture(m, ITEMS)
    assert torch.equal(trace[0].weights, plain[0].weights)
    assert torch.equal(trace[1].weights[:, 1], plain[1].weights[:, 1])
    count = trace[1].allowed[:, 0].sum(-1, keepdim=True).clamp(min=1)
    assert torch.equal(trace[1].weights[:, 0], trace[1].allowed[:, 0] / count)
    with sr.intervene(m, lambda w, allowed: w * 2, heads=1):
        trace = sr.capture(m, ITEMS)
    assert torch.equal(trace[0].weights[:, 0], plain[0].weights[:, 0])
    assert torch.equal(trace[0].weights[:, 1], plain[0].weights[:, 1] * 2)


def test_each_layer_gets_the_change_at_its_place_in_the_list():
    m = model()
    for layers in ([1, 0], [np.int64(-1), 0]):
        with sr.intervene(m, ["last", "uniform"], layers=layers):
            first, second = (layer.weights[1, 0] for layer in sr.capture(m, ITEMS))
        assert torch.equal(second, torch.eye(6)) and not torch.equal(first, second)
    with sr.intervene(m, "last", layers=np.int64(1)):
        assert torch.equal(sr.capture(m, ITEMS)[1].weights[1, 0], torch.eye(6))


def test_interventions_nest():
    m = model()
    with sr.intervene(m, "uniform"), sr.intervene(m, sr.RemoveDistance(0)):
        weights = sr.capture(m, ITEMS)[0].weights
        with sr.intervene(m, "last", layers=0):
            assert torch.equal(sr.capture(m, ITEMS)[0].weights[1, 0], torch.eye(6))
        assert torch.equal(sr.capture(m, ITEMS)[0].weights, weights)
    assert torch.allclose(weights[1, 0, 5], torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2, 0]))
    with sr.intervene(m, sr.ScaleResidual(0.5)), sr.intervene(m, sr.ScaleResidual(0.5), layers=1):
        assert [block.residual_scale for block in m.blocks] == [0.5, 0.25]
    with sr.intervene(m, sr.SwapPositions(-1, -2)):
        with sr.intervene(m, sr.SwapPositions(-1, -2)):
            twice = m(ITEMS)
        once = m(ITEMS)
    assert torch.equal(twice, m(ITEMS)) and not torch.equal(once, twice)


def test_removing_a_position_or_a_distance_renormalises():
    m = model()
    plain = sr.capture(m, ITEMS)[0].weights
    with sr.intervene(m, sr.RemovePosition(-3, -20)):
        removed = sr.capture(m, ITEMS)[0].weights
    assert (removed[..., 3] == 0).all()
    expected = plain[1, :, 5] * (torch.arange(6) != 3)
    assert torch.allclose(removed[1, :, 5], expected / expected.sum(-1, keepdim=True))
    assert (removed[0, :, 3] == 0).all()  # the first item of the first sequence saw only itself
    with sr.intervene(m, sr.RemoveDistance(1, 2)):
        removed = sr.capture(m, ITEMS)[0].weights
    assert (removed.diagonal(-1, -2, -1) == 0).all() and (removed.diagonal(-2, -2, -1) == 0).all()
    assert torch.allclose(removed[1].sum(-1), torch.ones(2, 6))


def test_swapping_positions_swaps_what_is_read():
    m = model()
    other = ITEMS.clone()
    other[:2, [-1, -3]] = other[:2, [-3, -1]]  # the third sequence has only one item
    with sr.intervene(m, sr.SwapPositions(-1, -3)):
        swapped = m(ITEMS)
        short = m(ITEMS[:, -2:])
    assert torch.equal(swapped, m(other))
    assert torch.equal(short, m(ITEMS[:, -2:]))


def test_interventions_hold_in_training_and_under_evaluate():
    m, split = model(dropout=0.2), tiny_split()
    plain = sr.evaluate(m, split)
    with sr.intervene(m, "last"):
        changed = sr.evaluate(m, split)
        seen = []
        m.blocks[0].attention.recorder = lambda weights, **_: seen.append(weights)
        sr.fit(m, split, epochs=1, progress=False, device="cpu")
        m.blocks[0].attention.recorder = None
    assert (changed.ranks != plain.ranks).any()
    weights = seen[0]
    assert torch.equal(weights, weights * torch.eye(weights.shape[-1]))


def test_a_weighting_with_parameters_is_passed_as_an_object_and_trains():
    m, other = model(), model(attention="awrsr-additive")
    with (
        pytest.raises(ValueError, match="'awrsr-additive' has parameters.*softmax, uniform"),
        sr.intervene(m, "awrsr-additive"),
    ):
        pass
    trained = other.blocks[1].attention.weighting
    with sr.intervene(m, trained):
        weights = sr.capture(m, ITEMS)[0]
        assert torch.equal(weights.weights, trained(weights.scores, weights.allowed))
        assert any(parameter is trained.w_value for parameter in m.parameters())
    shuffled = Shuffled(seed=5).build(0, 2, 7)
    with sr.intervene(m, shuffled):
        assert torch.equal(
            sr.capture(m, ITEMS)[1].weights,
            shuffled(*sr.capture(m, ITEMS)[1].need("scores", "allowed")),
        )


def test_a_waiting_weighting_is_moved_and_switched_with_the_model():
    m = model(attention="awrsr-additive")
    waiting = m.blocks[0].attention.weighting
    with sr.intervene(m, "uniform"):
        m.double().train()
    assert waiting.w_value.dtype == torch.float64 and waiting.training
    assert m.blocks[0].attention.weighting is waiting


def test_a_weighting_is_not_set_where_it_would_be_undone():
    m = model()
    with sr.intervene(m, "uniform"), pytest.raises(ValueError, match="set_weighting outside"):
        m.set_weighting("last")
    assert m.config["attention"] == "softmax"
    m.set_weighting("last")
    assert m.blocks[0].attention.weighting.name == "last"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (dict(change="uniform", layers=[2]), ValueError, "no layer 2; the model has 2"),
        (dict(change="uniform", layers=[1, -1]), ValueError, r"layer is named twice in \[1, -1\]"),
        (dict(change="uniform", heads=[-3]), ValueError, "no head -3; the model has 2"),
        (dict(change="nothing"), ValueError, "no weighting is called 'nothing'"),
        (dict(change="wasserstein"), ValueError, "made for Gaussians"),
        (dict(change=7), TypeError, "cannot intervene with 7"),
        (dict(change=sr.ScaleResidual(2), heads=0), ValueError, "concerns no head"),
        (dict(change="uniform", layers=[]), ValueError, "no layer is named"),
        (dict(change="uniform", heads=[]), ValueError, "no head is named"),
        (dict(change=sr.SwapPositions(-1, -2), layers=0), ValueError, "leave layers= out"),
    ],
)
def test_mistakes_are_named(call, error, message):
    m = model()
    before = snapshot(m)
    with pytest.raises(error, match=message), sr.intervene(m, **call):
        pass
    assert snapshot(m) == before


def test_positions_count_from_the_end():
    for make in (
        lambda: sr.RemovePosition(0),
        lambda: sr.RemovePosition(),
        lambda: sr.SwapPositions(1, -1),
    ):
        with pytest.raises(ValueError, match="count from the end"):
            make()
    with pytest.raises(ValueError, match="count steps back"):
        sr.RemoveDistance(-1)


@pytest.mark.parametrize("change", ["random", "uniform", "last", "shuffled"])
def test_some_heads_of_a_model_of_another_precision(change):
    m = model().double()
    with sr.intervene(m, change, heads=[0]):
        assert m(ITEMS).dtype == torch.float64


def test_some_heads_where_autocast_makes_softmax_of_float32(monkeypatch):
    """As it does on a GPU, where scores are of bfloat16."""
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: softmax(x.float(), dim))
    m = model()
    with torch.autocast("cpu", torch.bfloat16), sr.intervene(m, "uniform", heads=[0]):
        assert m(ITEMS)[ITEMS > 0][:, 1:].isfinite().all()


def test_a_model_tells_what_was_done_to_it():
    m, swap = model(), sr.SwapPositions(-1, -2)
    assert m.departures() == {}
    with (
        sr.intervene(m, "uniform", layers=1, heads=0),
        sr.intervene(m, squared, layers=1),  # acts on what the other made
        sr.intervene(m, sr.ScaleResidual(0.5), layers=0),
        sr.intervene(m, swap),
    ):
        told = m.departures()
        edit, heads = told.pop("blocks.1.attention.weighting")
        assert edit.startswith("squared ") and heads is None
        assert told == {
            "reading": "SwapPositions(a=-1, b=-2)",
            "blocks.0.residual_scale": 0.5,
            "blocks.1.attention.weighting.original": ["uniform", [0]],
        }
    assert m.departures() == {}


def test_a_weighting_on_another_device_is_refused():
    away = RefinedAdditive().build(0, 2, 7).to("meta")
    with (
        pytest.raises(ValueError, match="is on meta and the model on cpu; move it"),
        sr.intervene(model(), away),
    ):
        pass
