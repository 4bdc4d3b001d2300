"""The worlds against their rules, written again here in the slowest and plainest way."""

import hashlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec_lib.data import worlds
from seqrec_lib.data.interactions import Ragged
from seqrec_lib.data.splits import leave_one_out
from seqrec_lib.evaluation.ranking import evaluate
from seqrec_lib.models.baselines import ItemKNN, MarkovChain, Popularity

NAMES = ["markov", "taste", "series", "two_hop"]
SEEDS = [1001, 1002]  # none of them was used in designing the worlds


def matrix(world):
    return world.sequences.values.reshape(world.num_users, -1)


def small(name, genres, size, users, length, seed):
    """A small world; ``length`` is what the rule is left with after its beginning."""
    if name == "markov":
        return worlds.markov(users, genres * size, length, seed, num_successors=2)
    length += genres if name == "two_hop" else 0
    return getattr(worlds, name)(users, genres * size, length, seed, num_genres=genres)


any_world = st.builds(
    small,
    name=st.sampled_from(NAMES),
    genres=st.integers(1, 5),
    size=st.integers(2, 6),
    users=st.integers(1, 12),
    length=st.integers(2, 15),
    seed=st.integers(0, 2**32),
)


# ---------------------------------------------------------------- the rules, written again


def pointer(oracle, history, t):
    """Where event t points: the latest earlier event of the genre its item leads to, or itself."""
    for s in range(t - 1, -1, -1):
        if (history[s] - 1) // oracle.size == oracle.leads_to[history[t]]:
            return s
    return t


def sequel(oracle, item):
    return item + 1 if item % oracle.size else item + 1 - oracle.size


def next_markov(oracle, history):
    p = np.full(oracle.num_items + 1, oracle.noise / oracle.num_items)
    for item, weight in zip(oracle.successors[history[-1]], oracle.weights, strict=True):
        p[item] += (1 - oracle.noise) * weight
    return p


def next_taste(oracle, history):
    """The mixture integrated out by brute force: many mixtures, weighted by the likelihood."""
    genres = [(item - 1) // oracle.size for item in history]
    prior = np.full(oracle.num_genres, oracle.concentration)
    mixtures = np.random.default_rng(0).dirichlet(prior, 400_000)
    likelihood = np.prod([mixtures[:, g] for g in genres], axis=0)
    posterior = likelihood @ mixtures / likelihood.sum()
    return np.concatenate([[0], np.outer(posterior, oracle.popularity).ravel()])


def next_series(oracle, history):
    p = np.zeros(oracle.num_items + 1)
    for genre in range(oracle.num_genres):
        share = oracle.noise / oracle.num_genres
        share += (1 - oracle.noise) * (genre == oracle.leads_to[history[-1]])
        members = [i for i in range(1, oracle.num_items + 1) if (i - 1) // oracle.size == genre]
        seen = [item for item in history if item in members]
        for item in [sequel(oracle, seen[-1])] if seen else members:
            p[item] += share / (1 if seen else len(members))
    return p


def next_two_hop(oracle, history):
    j = pointer(oracle, history, len(history) - 1)
    k = pointer(oracle, history, j)
    p = np.full(oracle.num_items + 1, oracle.noise / oracle.num_items)
    p[sequel(oracle, history[j])] += (1 - oracle.noise) * oracle.direct
    p[sequel(oracle, history[k])] += (1 - oracle.noise) * (1 - oracle.direct)
    return p


RULES = dict(zip(NAMES, [next_markov, next_taste, next_series, next_two_hop], strict=True))


def metrics_of_rank(scores, target, ks=(1, 5, 10, 20, 100)):
    """HR, NDCG and MRR of one target, each the mean over the ranks it shares with its equals."""
    above, equal = (scores > scores[target]).sum(), (scores == scores[target]).sum()
    ranks = np.arange(above + 1, above + equal + 1)
    found = {f"HR@{k}": np.mean(ranks <= k) for k in ks}
    found |= {f"NDCG@{k}": np.mean((ranks <= k) / np.log2(1 + ranks)) for k in ks}
    return found | {"MRR": np.mean(1 / ranks)}


def ndcg(scores, targets):
    """Mean NDCG@10 of ``scores`` (n, num_items + 1), ties shared."""
    own = scores[np.arange(len(targets)), targets][:, None]
    above, equal = (scores > own).sum(axis=1), (scores == own).sum(axis=1)
    gain = np.zeros(scores.shape[1] + 1)
    gain[1:11] = 1 / np.log2(np.arange(2, 12))
    total = gain.cumsum()
    return ((total[above + equal] - total[above]) / equal).mean()


# ---------------------------------------------------------------- every world


@given(world=any_world)
@settings(max_examples=60)
def test_a_world_is_a_log_with_its_truth(world):
    truth, items = world.truth, matrix(world)
    assert items.min() >= 1 and items.max() <= world.num_items
    assert truth.sources.shape == (world.num_interactions,)
    assert (truth.sources >= -1).all() and (truth.sources < world.sequences.position).all()
    for metric in ("HR", "NDCG"):
        by_k = [truth.best[f"{metric}@{k}"] for k in (1, 5, 10, 20, 100)]
        assert np.all(np.diff(by_k) >= -1e-12) and by_k[0] > 0 and by_k[-1] < 1 + 1e-9
    assert truth.best["HR@1"] == pytest.approx(truth.best["NDCG@1"])
    assert truth.best["NDCG@10"] <= truth.best["HR@10"]
    probabilities = truth.oracle.predict(items[:, :-1])
    assert probabilities.shape == (world.num_users, world.num_items + 1)
    assert (probabilities[:, 0] == 0).all() and (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


@pytest.mark.parametrize("name", ["markov", "series", "two_hop"])
@given(data=st.data())
@settings(max_examples=25)
def test_oracle_and_best_are_what_the_rule_says(name, data):
    world = small(
        name,
        *(data.draw(st.integers(2, 5)) for _ in range(2)),
        users=4,
        length=data.draw(st.integers(2, 12)),
        seed=data.draw(st.integers(0, 999)),
    )
    oracle, items = world.truth.oracle, matrix(world)
    mean = dict.fromkeys(world.truth.best, 0.0)
    for history in items[:, :-1]:
        expected = RULES[name](oracle, list(history))
        np.testing.assert_allclose(oracle.predict(history[None])[0, 1:], expected[1:], atol=1e-12)
        scores = oracle.predict(history[None])[0, 1:]
        for target in range(world.num_items):
            for metric, value in metrics_of_rank(scores, target).items():
                mean[metric] += value * expected[target + 1] / len(items)
    assert mean == pytest.approx(dict(world.truth.best))


def test_taste_integrates_the_mixture_out():
    world = worlds.taste(num_users=3, num_items=12, length=7, num_genres=3, seed=SEEDS[0])
    for history in matrix(world)[:, :-1]:
        expected = next_taste(world.truth.oracle, history)
        found = world.truth.oracle.predict(history[None])[0]
        np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_reaches_best_and_nothing_simple_does_better(name, seed):
    world = getattr(worlds, name)(seed=seed)
    split, best = leave_one_out(world), world.truth.best
    found = evaluate(world.truth.oracle, split)
    for metric, value in best.items():
        error = 0.5 / np.sqrt(world.num_users)  # no metric in [0, 1] spreads more than that
        assert found[metric] == pytest.approx(value, abs=3.5 * error), metric
    for model in (Popularity(), MarkovChain(), ItemKNN()):
        simple = evaluate(model.fit(split), split)
        assert all(simple[metric] < best[metric] + 3.5 * error for metric in best)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_log(name):
    make = getattr(worlds, name)
    log = [make(num_users=50, seed=seed).sequences.values for seed in (7, 7, 8)]
    np.testing.assert_array_equal(log[0], log[1])
    assert (log[0] != log[2]).any()


PINNED = {
    "markov": "306b6197cf41",
    "taste": "88ff58bdafb7",
    "series": "93c8ba158cf2",
    "two_hop": "bd2ddd3de86d",
}


def digest(world):
    return hashlib.sha256(world.sequences.values.astype("<i8").tobytes()).hexdigest()[:12]


def test_the_logs_are_the_same_on_every_machine():
    assert {name: digest(getattr(worlds, name)()) for name in NAMES} == PINNED


def test_a_large_world_takes_little_time():
    start = time.perf_counter()
    for name in NAMES:
        getattr(worlds, name)()
    assert time.perf_counter() - start < 10  # a fraction of a second on an idle machine


def test_the_oracle_takes_histories_of_any_length():
    world = worlds.two_hop(num_users=5, seed=SEEDS[0])
    histories = Ragged.from_lists([items[: 3 + 5 * u] for u, items in enumerate(world.sequences)])
    scores = world.truth.oracle.score_histories(histories)
    assert (scores[:, 0] == -np.inf).all()
    for row, history in zip(scores, histories, strict=True):
        np.testing.assert_array_equal(row[1:], world.truth.oracle.predict(history[None])[0, 1:])
    with pytest.raises(ValueError, match="one is empty"):
        world.truth.oracle.score_histories(Ragged.from_lists([[1], []]))


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("markov", {"num_users": 0}, "num_users must be a whole number of at least 1"),
        ("markov", {"num_items": 2.5}, "num_items must be a whole number"),
        ("markov", {"length": 1}, "length=1 leaves nothing"),
        ("markov", {"num_successors": 300}, "num_successors=300 must not exceed num_items=200"),
        ("markov", {"noise": 1.5}, "noise must lie between 0 and 1"),
        ("markov", {"decay": 2}, "decay must lie between 0 and 1"),
        ("taste", {"num_genres": 7}, "num_genres=7 must divide num_items=200"),
        ("taste", {"concentration": 0}, "concentration must be positive"),
        ("series", {"noise": -0.1}, "noise must lie between 0 and 1"),
        ("two_hop", {"direct": 2}, "direct must lie between 0 and 1"),
        ("two_hop", {"length": 20}, "length=20 must exceed num_genres=20"),
    ],
)
def test_nonsense_is_refused_by_name(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(worlds, name)(**arguments)


# ---------------------------------------------------------------- each world's own


def decided(world):
    """(history up to the event, item, source) of every event that has a source."""
    sources = world.truth.sources.reshape(world.num_users, -1)
    for items, positions in zip(matrix(world), sources, strict=True):
        for t in np.flatnonzero(positions >= 0):
            yield items[:t], items[t], positions[t]


def share_without_source(world, start):
    return (world.truth.sources.reshape(world.num_users, -1)[:, start:] < 0).mean()


def test_markov_follows_the_event_before():
    world = worlds.markov(num_users=300, seed=SEEDS[0])
    for before, item, source in decided(world):
        assert source == len(before) - 1
        assert item in world.truth.oracle.successors[before[source]]
    assert share_without_source(world, 1) == pytest.approx(0.1, abs=0.02)


def test_taste_does_not_care_for_order():
    world = worlds.taste(num_users=30, seed=SEEDS[0])
    history, rng = matrix(world)[:, :-1], np.random.default_rng(0)
    np.testing.assert_array_equal(
        world.truth.oracle.predict(history),
        world.truth.oracle.predict(rng.permuted(history, axis=1)),
    )
    assert (world.truth.sources == -1).all()


def test_series_goes_on_where_the_user_left():
    world = worlds.series(num_users=300, seed=SEEDS[0])
    oracle = world.truth.oracle
    for before, item, source in decided(world):
        genres = (before - 1) // oracle.size
        assert (item - 1) // oracle.size == oracle.leads_to[before[-1]] == genres[source]
        assert item == sequel(oracle, before[source])
        assert (genres[source + 1 :] != genres[source]).all()
    assert share_without_source(world, 25) < 0.25


def test_two_hop_follows_one_pointer_or_two():
    world = worlds.two_hop(num_users=300, seed=SEEDS[0])
    oracle, once = world.truth.oracle, []
    for before, item, source in decided(world):
        j = pointer(oracle, before, len(before) - 1)
        k = pointer(oracle, before, j)
        assert source in (j, k) and item == sequel(oracle, before[source])
        once += [source == j] if j != k else []
    assert np.mean(once) == pytest.approx(0.3, abs=0.03)
    assert share_without_source(world, 20) == pytest.approx(0.1, abs=0.02)
    genres = (matrix(world)[:, :20] - 1) // oracle.size
    assert (np.sort(genres, axis=1) == np.arange(20)).all()  # the beginning: one of each


@pytest.mark.parametrize("seed", SEEDS)
def test_two_hop_needs_both_hops(seed):
    """Two steps reach .9 of the best NDCG@10; the last item, or the bag of items, at most half."""
    world = worlds.two_hop(num_users=20_000, seed=seed)
    oracle, items = world.truth.oracle, matrix(world)
    history, target, users = items[:, :-1], items[:, -1], np.arange(len(items))
    best = world.truth.best["NDCG@10"]

    def continuing(*weighted):
        """Scores from (positions (n,), weight (n,) or number): the sequel gets the weight."""
        scores = np.zeros((len(items), world.num_items + 1))
        for positions, weight in weighted:
            scores[users, oracle.sequel(history[users, positions])] += weight
        return scores

    pointers = np.stack([oracle.point_back(history, t) for t in range(history.shape[1])], axis=1)
    j = pointers[:, -1]
    k = pointers[users, j]
    assert ndcg(continuing((k, 2), (j, 1)), target) > 0.9 * best

    # One hop: knows j, and of k only the genre that j's item leads to.
    one_hop = 0.3 * continuing((j, 1))
    one_hop[:, 1:] += (
        0.7
        / oracle.size
        * (np.arange(world.num_items) // oracle.size == oracle.leads_to[history[users, j]][:, None])
    )
    assert ndcg(one_hop, target) < 0.7 * best

    # The last item alone: counted on the very users it is tested on, which can only flatter it.
    table = np.zeros((world.num_items + 1, world.num_items + 1))
    np.add.at(table, (history[:, -1], target), 1)
    assert ndcg(table[history[:, -1]], target) < 0.5 * best

    # A bag does not know which event was the last. Let it know where every event points, and
    # which event of each genre is the latest: the last event may still be any of those twenty.
    latest = np.zeros((len(items), oracle.num_genres), dtype=np.int64)
    for t in range(history.shape[1]):
        latest[users, oracle.genre(history[:, t])] = t
    ways = []
    for last in latest.T:
        first = pointers[users, last]
        ways += [(first, 0.3), (pointers[users, first], 0.7)]
    assert ndcg(continuing(*ways), target) < 0.5 * best
