"""The baselines against counts made by loops, and what they must and must not know."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seqrec_lib.data.interactions import Interactions, Ragged
from seqrec_lib.data.splits import leave_one_out
from seqrec_lib.evaluation import evaluate
from seqrec_lib.models.baselines import ItemKNN, MarkovChain, Popularity

MODELS = [
    Popularity(),
    MarkovChain(),
    MarkovChain(prior=0.3),
    ItemKNN(neighbours=1000, decay=1, shrink=0),
    ItemKNN(neighbours=1000, decay=0.7, shrink=2),
]


def log(users=60, items=12, seed=0) -> Interactions:
    rng = np.random.default_rng(seed)
    return Interactions(
        Ragged.from_lists([rng.integers(1, items + 1, rng.integers(1, 9)) for _ in range(users)]),
        items + 2,  # two items nobody ever took
    )


def split_of(lists, num_items):
    return leave_one_out(Interactions(Ragged.from_lists(lists), num_items))


def slowly(model, train, history) -> list[float]:
    """The definitions, item by item."""
    sequences = [list(s) for s in train.sequences]
    total = sum(len(s) for s in sequences)
    users = {j: {u for u, s in enumerate(sequences) if j in s} for j in range(train.num_items + 1)}
    scores = []
    for j in range(1, train.num_items + 1):
        share = sum(s.count(j) for s in sequences) / total
        if isinstance(model, Popularity):
            scores.append(share)
        elif isinstance(model, MarkovChain):
            pairs = [p for s in sequences for p in zip(s[:-1], s[1:], strict=True)]
            last = history[-1] if len(history) else None
            both, left = pairs.count((last, j)), sum(p[0] == last for p in pairs)
            scores.append((both + model.prior * share) / (left + model.prior))
        else:
            score = 0.0
            for d, i in enumerate(reversed(history)):
                together = len(users[i] & users[j])
                if i != j and together:
                    size = math.sqrt(len(users[i]) * len(users[j])) + model.shrink
                    score += model.decay**d * together / size
            scores.append(score + 1e-9 * share)
    return scores


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_scores_are_those_of_the_definition(model):
    split = leave_one_out(log())
    histories = Ragged.from_lists([[], [3], [3, 5, 3], [13, 1], [1, 2, 3, 4, 5, 6, 7]])
    scores = model.fit(split).score_histories(histories)
    assert scores.shape == (5, split.num_items + 1)
    assert np.isneginf(scores[:, 0]).all()
    for row, history in zip(scores, histories, strict=True):
        np.testing.assert_allclose(row[1:], slowly(model, split.train, list(history)), rtol=1e-12)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_the_held_out_items_are_not_looked_at(model):
    """Other targets, same training: same scores."""
    inter = log()
    split = leave_one_out(inter)
    other = inter.sequences.values.copy()
    from_end = np.repeat(inter.lengths, inter.lengths) - inter.sequences.position
    held = (from_end <= 2) & (np.repeat(inter.lengths, inter.lengths) >= 3)
    other[held] = other[held] % 12 + 1
    changed = leave_one_out(Interactions(Ragged(other, inter.sequences.offsets), inter.num_items))
    assert not np.array_equal(split.test.targets, changed.test.targets)
    histories = split.train.sequences
    before = model.fit(split).score_histories(histories)
    assert np.array_equal(before, model.fit(changed).score_histories(histories))


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_numbering_the_items_otherwise_changes_nothing(model):
    inter = log()
    new = np.concatenate([[0], 1 + np.random.default_rng(1).permutation(inter.num_items)])
    renamed = Interactions(
        Ragged(new[inter.sequences.values], inter.sequences.offsets), inter.num_items
    )
    a, b = leave_one_out(inter), leave_one_out(renamed)
    before = model.fit(a).score_histories(a.test.histories)
    after = model.fit(b).score_histories(b.test.histories)
    np.testing.assert_allclose(before, after[:, new], rtol=1e-9)


def test_the_neighbours_kept_are_the_nearest():
    split = leave_one_out(log(users=200))
    everyone = ItemKNN(neighbours=1000, decay=1).fit(split).similarity.toarray()
    nearest = ItemKNN(neighbours=3, decay=1).fit(split).similarity.toarray()
    assert ((nearest > 0).sum(axis=1) <= 3).all()
    np.testing.assert_allclose(np.sort(nearest)[:, -3:], np.sort(everyone)[:, -3:])
    kept = nearest > 0
    assert np.array_equal(nearest[kept], everyone[kept])


def test_similarities_do_not_depend_on_the_block_size(monkeypatch):
    split = leave_one_out(log())
    once = ItemKNN(neighbours=5).fit(split).similarity.toarray()
    monkeypatch.setattr("seqrec_lib.models.baselines._CELLS", 1)
    assert np.array_equal(once, ItemKNN(neighbours=5).fit(split).similarity.toarray())


def test_each_baseline_wins_where_its_assumption_holds():
    rng = np.random.default_rng(0)
    steps = np.arange(9)
    cycles = [(rng.integers(20) + steps) % 20 + 1 for _ in range(200)]  # the next is last + 1
    genres = [rng.permutation(6) + 1 + 6 * rng.integers(5) for _ in range(200)]  # order: none
    fads = rng.choice(20, (200, 6), p=np.r_[0.4, np.full(19, 0.6 / 19)]) + 1
    score = {
        (world, type(model).__name__): evaluate(model.fit(split), split, ks=(1, 6))["HR@1"]
        for world, lists in {"cycle": cycles, "genre": genres, "fad": fads}.items()
        for split in [split_of(lists, 30)]
        for model in (Popularity(), MarkovChain(), ItemKNN(decay=1))
    }
    assert score["cycle", "MarkovChain"] == 1
    assert score["cycle", "Popularity"] < 0.2
    filtered = evaluate(ItemKNN(decay=1).fit(split_of(genres, 30)), split_of(genres, 30)).filtered
    assert filtered["HR@1"] == 1  # five of six seen: the sixth is left
    assert score["fad", "Popularity"] == pytest.approx(0.4, abs=0.1)
    assert score["fad", "Popularity"] >= score["fad", "ItemKNN"]


@pytest.mark.parametrize("prior", [0, -1, float("nan")])
def test_a_chain_needs_a_prior(prior):
    with pytest.raises(ValueError, match="must be above 0"):
        MarkovChain(prior=prior).fit(leave_one_out(log()))


def test_a_model_that_was_not_fitted_says_so():
    with pytest.raises(RuntimeError, match="MarkovChain knows nothing yet; call fit"):
        evaluate(MarkovChain(), leave_one_out(log()))
    with pytest.raises(RuntimeError, match="call fit"):
        Popularity().score_histories(Ragged.from_lists([[1]]))
