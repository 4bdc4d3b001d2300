"""The mean of a refinement over sequences, put in the refinement's place."""

import numpy as np
import pytest
import torch

import seqrec_lib as sr
from seqrec_lib.data.batching import pad
from seqrec_lib.data.interactions import Ragged
from seqrec_lib.models.weighting import masked_softmax

REFINED = ["awrsr-simple", "awrsr-value", "awrsr-additive"]


def model_of(attention, kind=sr.SASRec, **settings):
    return kind(20, max_len=6, dim=8, num_heads=2, attention=attention, seed=1, **settings).eval()


def histories(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return Ragged.from_lists([rng.integers(1, 21, length).tolist() for length in lengths])


@pytest.mark.parametrize("attention", REFINED)
def test_the_mean_is_that_of_a_loop_over_histories(attention):
    model, data = model_of(attention), histories([2, 6, 9, 4])
    made = sr.refinement_by_position(model, data)
    assert not any(each.mean.requires_grad for each in made)  # no graph was kept
    for layer, block in enumerate(model.blocks):
        total, count = torch.zeros(2, 6, 6), torch.zeros(6, 6)
        for row in range(len(data)):
            items = pad(data.select(np.array([row])), 6)
            trace = sr.capture(model, items)[layer]
            weighting = block.attention.weighting
            scores, allowed = trace.scores, trace.allowed
            refined = weighting.refine(weighting.tokens(scores, allowed), scores, allowed)
            learned = refined - scores if attention == "awrsr-additive" else refined
            n = items.shape[1]
            total[:, 6 - n :, 6 - n :] += (learned * allowed)[0].detach()
            count[6 - n :, 6 - n :] += allowed[0, 0]
        torch.testing.assert_close(made[layer].mean, total / count.clamp(min=1))


@pytest.mark.parametrize("attention", REFINED)
def test_of_a_single_history_nothing_is_lost(attention):
    """The mean over one sequence is the sequence's own refinement."""
    model, data = model_of(attention), histories([6])
    items = pad(data, 6)
    with torch.no_grad():
        whole = model.encode(items)
        with sr.intervene(model, sr.refinement_by_position(model, data)):
            torch.testing.assert_close(model.encode(items), whole)
        other = model.encode(pad(histories([6], seed=3), 6))
        with sr.intervene(model, sr.refinement_by_position(model, data)):
            changed = model.encode(pad(histories([6], seed=3), 6))
    assert not torch.allclose(other, changed, atol=1e-3)


def test_short_batches_use_the_trailing_part():
    model = model_of("awrsr-value")
    weighting = sr.refinement_by_position(model, histories([6, 6, 5]))[0]
    allowed = torch.ones(3, 3, dtype=torch.bool).tril().expand(1, 2, 3, 3)
    expected = masked_softmax(weighting.mean[None, :, -3:, -3:], allowed)
    torch.testing.assert_close(weighting(None, allowed), expected)


def test_it_leaves_no_trace():
    model = model_of("awrsr-additive")
    before = [block.attention.weighting for block in model.blocks]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    sr.refinement_by_position(model, histories([3, 5]))
    assert [block.attention.weighting for block in model.blocks] == before
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_stosa_has_refinements_too():
    model, data = model_of("awrsr-stochastic", sr.STOSA), histories([6])
    items = pad(data, 6)
    with torch.no_grad(), sr.intervene(model, sr.refinement_by_position(model, data)):
        inside = model.encode(items)
    torch.testing.assert_close(inside[0], model.encode(items)[0])


def test_only_a_refinement_can_be_averaged():
    with pytest.raises(ValueError, match="only a refinement.*the model has softmax"):
        sr.refinement_by_position(model_of("softmax"), histories([3]))
    with pytest.raises(ValueError, match="nothing to measure"):
        sr.refinement_by_position(model_of("awrsr-simple"), Ragged.from_lists([]))


def test_a_list_of_changes_needs_one_for_each_layer():
    model = model_of("softmax")
    change = sr.intervene(model, ["uniform", "last", "uniform"])
    with pytest.raises(ValueError, match="3 changes for 2 layers"), change:
        pass
    items = pad(histories([5]), 6)
    with torch.no_grad(), sr.intervene(model, ["uniform", "last"]):
        both = model.encode(items)
    first, second = sr.intervene(model, "uniform", layers=0), sr.intervene(model, "last", layers=1)
    with torch.no_grad(), first, second:
        torch.testing.assert_close(model.encode(items), both)
