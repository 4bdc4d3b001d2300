"""Attribution: rollouts by hand, removal by brute force, and a rule that is known."""

import numpy as np
import pytest
import torch
from scipy import stats

import seqrec_lib as sr
from seqrec_lib.analysis.attribution import METHODS

ITEMS = torch.tensor([[0, 0, 0, 3, 1, 4], [2, 5, 9, 2, 6, 5], [0, 0, 0, 0, 0, 7]])


def model(kind=sr.SASRec, **settings):
    settings = {"num_items": 9, "max_len": 7, "dim": 8, "num_heads": 2, "seed": 0, **settings}
    made = kind(**settings).eval()
    with torch.no_grad():
        made.items.weight[1:] *= 30  # else position, not items, decides
    return made


def test_rollout_of_weights_by_hand():
    trace = sr.capture(model(), ITEMS)
    first, second = (layer.weights.mean(1)[1] for layer in trace)
    eye = torch.eye(6)
    expected = (0.5 * second + 0.5 * eye) @ (0.5 * first + 0.5 * eye)
    assert torch.allclose(sr.rollout(trace)[1], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["weights", "attn_res", "attn_res_ln"])
def test_rolled_shares_add_up_to_one(kind):
    shares = sr.rollout(sr.capture(model(), ITEMS), kind)
    real = ITEMS > 0
    assert torch.allclose(shares[real].sum(-1), torch.ones(int(real.sum())))
    assert (shares[~real] == 0).all() and (shares.transpose(1, 2)[~real] == 0).all()
    assert (shares.triu(1) == 0).all() and (shares >= 0).all()


def test_a_model_that_looks_at_itself_alone_rolls_out_to_itself():
    trace = sr.capture(model(attention="last"), ITEMS)
    assert torch.equal(sr.rollout(trace, "attn_res_ln")[1], torch.eye(6))
    with pytest.raises(ValueError, match="kind must be one of weights"):
        sr.rollout(trace, "attn")


@pytest.mark.parametrize("kind", [sr.SASRec, sr.STOSA])
def test_removing_is_scoring_the_shorter_history(kind):
    m = model(kind)
    target = torch.tensor([8, 1, 2])
    effects = sr.removal_effects(m, ITEMS, target, batch_size=2)
    for b in range(3):
        history = ITEMS[b][ITEMS[b] > 0].tolist()
        for place in range(6):
            j = place - (6 - len(history))
            if j < 0 or len(history) == 1:
                assert effects[b, place].isnan()
                continue
            shorter = torch.tensor([history[:j] + history[j + 1 :]])
            whole = m(torch.tensor([history]))[0, -1, target[b]]
            expected = whole - m(shorter)[0, -1, target[b]]
            assert effects[b, place].item() == pytest.approx(expected.item(), abs=1e-4)


def test_the_gradient_is_that_of_the_score():
    """Against finite differences: each item's embedding shrunk a little, at its place alone."""
    m = model().double()
    found = sr.item_contributions(m, ITEMS, target=[8, 1, 2], method="gradient")
    for b, j in [(1, 0), (1, 5), (0, 3), (2, 5)]:
        scores = []
        for factor in (1 + 1e-4, 1 - 1e-4):
            scale = torch.ones(3, 6, 1, dtype=torch.float64)
            scale[b, j] = factor
            hook = m.items.register_forward_hook(lambda module, i, out, s=scale: out * s)
            scores.append(m(ITEMS)[b, -1, [8, 1, 2][b]])
            hook.remove()
        expected = (scores[0] - scores[1]).item() / 2e-4
        assert found[b, j].item() == pytest.approx(expected, rel=1e-4)
    assert (found[ITEMS == 0] == 0).all()
    assert all(parameter.grad is None for parameter in m.parameters())


@pytest.mark.parametrize("kind", [sr.SASRec, sr.STOSA])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_attributes_to_items_alone(kind, method):
    m = model(kind).train()
    found = sr.item_contributions(m, ITEMS, method=method)
    assert found.shape == ITEMS.shape and (found[ITEMS == 0] == 0).all()
    assert (found[ITEMS > 0] != 0).all() and found.isfinite().all()
    if method != "gradient":
        assert torch.allclose(found.sum(1), torch.ones(3))
    assert m.training and not m.items._forward_hooks
    one = sr.item_contributions(m, ITEMS[1], method=method)
    assert torch.allclose(one[0], found[1], atol=1e-5)
    with pytest.raises(ValueError, match="method must be one of"):
        sr.item_contributions(m, ITEMS, method="guess")


def test_agreement_is_spearmans_correlation_with_removal():
    m = model()
    agreement = sr.attribution_agreement(m, ITEMS, methods=("norms", "gradient"))
    assert list(agreement) == ["norms", "gradient"]
    target = m.recommend(ITEMS, 1)[0][:, 0]
    effects = sr.removal_effects(m, ITEMS, target).abs()
    norms = sr.item_contributions(m, ITEMS, method="norms")
    expected = stats.spearmanr(norms[1], effects[1]).statistic
    assert agreement["norms"][1] == pytest.approx(expected)
    assert np.isnan(agreement["norms"][2])  # one item has no order
    flat = sr.attribution_agreement(model(attention="uniform"), ITEMS, methods=("weights",))
    assert np.isnan(flat["weights"]).all()  # neither has a constant


def test_place_orders_the_items_by_recency_alone():
    for m in (model(), model(seed=1)):
        place = sr.item_contributions(m, ITEMS, method="place")
        assert torch.allclose(place[0], torch.tensor([0, 0, 0, 1, 2, 3]) / 6)
        effects = sr.removal_effects(m, ITEMS).abs()[1]
        expected = stats.spearmanr(range(6), effects).statistic
        assert sr.attribution_agreement(m, ITEMS)["place"][1] == pytest.approx(expected)


def test_on_a_trained_model_norms_and_gradients_point_at_what_removal_finds():
    """The world `series`: within its genre, the last item of that series decides."""
    split = sr.leave_one_out(sr.worlds.series(num_users=300, num_items=60, length=16, seed=0))
    m = sr.SASRec(60, max_len=16, dim=16, num_blocks=1, dropout=0.1, seed=0)
    sr.fit(m, split, epochs=12, lr=5e-3, batch_size=32, progress=False, device="cpu")
    items = torch.as_tensor(np.stack([history[-14:] for history in split.test.histories[:40]]))
    agreement = {k: np.nanmean(v) for k, v in sr.attribution_agreement(m, items).items()}
    assert agreement["norms"] > 0.3 and agreement["gradient"] > 0.3


def test_removal_works_in_double_precision_and_asks_of_no_padding():
    m = model()
    single = sr.removal_effects(m, ITEMS)
    double = sr.removal_effects(m.double(), ITEMS)
    assert double.dtype == torch.float64
    assert torch.allclose(single.nan_to_num(9).double(), double.nan_to_num(9), atol=1e-4)
    for ask in (sr.removal_effects, sr.item_contributions):
        with pytest.raises(ValueError, match="target 0 is padding"):
            ask(m, ITEMS, 0)


@pytest.mark.parametrize("method", METHODS)
def test_one_target_serves_all_histories(method):
    m = model()
    for ask in (sr.removal_effects, lambda *a: sr.item_contributions(*a, method=method)):
        one, each = ask(m, ITEMS, 5), ask(m, ITEMS, torch.tensor([5, 5, 5]))
        assert torch.equal(one.nan_to_num(9), each.nan_to_num(9))
        with pytest.raises(ValueError, match=r"shape \(2,\) for 3 histories: pass one for each"):
            ask(m, ITEMS, torch.tensor([5, 6]))
