"""Ranks, metrics and intervals against enumeration, an independent library and hand counts."""

from __future__ import annotations

import itertools
import json
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from seqrec_lib.data.interactions import Interactions, Ragged
from seqrec_lib.data.splits import Part, Split
from seqrec_lib.evaluation import bootstrap_ci, evaluate

KS = (1, 2, 3, 10)


class Scores:
    """A model that answers with given scores (n, num_items), whatever the history says.

    The first item of each history tells the row, so that batches may come in any order.
    """

    def __init__(self, scores):
        self.scores = np.asarray(scores, dtype=np.float32)
        self.num_items = self.scores.shape[1]

    def score_histories(self, histories: Ragged) -> np.ndarray:
        rows = histories.values[histories.offsets[:-1]] - 1
        return np.concatenate([np.full((len(rows), 1), np.inf), self.scores[rows]], axis=1)


class Dot(nn.Module):
    """The smallest neural model: the query is the mean of the history's embeddings."""

    def __init__(self, num_items: int, dim: int = 8, max_len: int = 4, bias: bool = False):
        super().__init__()
        self.num_items, self.max_len = num_items, max_len
        self.table = nn.Parameter(torch.randn(num_items + 1, dim))
        self.bias = nn.Parameter(torch.randn(num_items + 1)) if bias else None
        self.dropout = nn.Dropout(0.5)

    def encode(self, items):
        assert items.shape[1] <= self.max_len
        there = (items > 0).float()[..., None]
        total = (self.table[items] * there).cumsum(1)
        return self.dropout(total / there.cumsum(1).clamp(min=1))

    def queries(self, encoded):
        return encoded

    def readout(self):
        return self.table, self.bias


def make_split(histories, targets, num_items, train=None) -> Split:
    part = Part(np.arange(len(targets)) + 100, Ragged.from_lists(histories), np.array(targets))
    log = Interactions(Ragged.from_lists(train or histories), num_items)
    return Split(train=log, validation=part, test=part, name="leave-one-out")


def random_split(n, num_items, seed=0, longest=9) -> Split:
    """Users whose first item is their row + 1 (needs num_items >= n)."""
    rng = np.random.default_rng(seed)
    tails = [rng.integers(1, num_items + 1, rng.integers(0, longest)) for _ in range(n)]
    histories = [[u + 1, *tail] for u, tail in enumerate(tails)]
    return make_split(histories, rng.integers(1, num_items + 1, n), num_items)


def by_enumeration(scores, target, hidden, name, k=None):
    """The mean of a metric over every order of the items that the scores allow."""
    values = []
    items = [j for j in range(len(scores)) if j not in hidden]
    for order in itertools.permutations(items):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            rank = order.index(target) + 1
            if name == "MRR":
                values.append(1 / rank)
            else:
                worth = 1 if name == "HR" else 1 / math.log2(rank + 1)
                values.append(worth if rank <= k else 0)
    return np.mean(values)


def test_a_part_s_seen_items_are_found_once(monkeypatch):
    split = make_split([[1, 3, 1, 2], [2], [3, 3]], [2, 3, 3], 4)
    assert [items.tolist() for items in split.test.seen] == [[1, 3], [2], []]
    monkeypatch.setattr(np, "unique", lambda *_: pytest.fail("looked for again"))
    evaluate(Scores(np.eye(3, 4)), split)


def test_four_users_by_hand():
    split = make_split([[1], [2], [3, 5], [4]], [1, 2, 3, 4], num_items=5)
    scores = [
        [9, 1, 2, 3, 4],  # target 1 is first
        [5, 4, 3, 2, 1],  # target 2 is second; its own item was seen, and is not filtered
        [5, 4, 1, 3, 2],  # target 3 is fifth; without item 5 (seen) fourth
        [7, 7, 1, 7, 0],  # target 4 ties with items 1 and 2: rank 1, 2 or 3
    ]
    m = evaluate(Scores(scores), split, ks=KS)
    assert m.ranks.tolist() == [1, 2, 5, 2]
    assert m["HR@1"] == pytest.approx((1 + 0 + 0 + 1 / 3) / 4)
    assert m["HR@2"] == pytest.approx((1 + 1 + 0 + 2 / 3) / 4)
    third = (1 + 1 / math.log2(3) + 1 / 2) / 3
    assert m["NDCG@3"] == pytest.approx((1 + 1 / math.log2(3) + 0 + third) / 4)
    assert m["MRR"] == pytest.approx((1 + 1 / 2 + 1 / 5 + (1 + 1 / 2 + 1 / 3) / 3) / 4)
    assert m.filtered.ranks.tolist() == [1, 2, 4, 2]
    assert m.filtered["MRR"] == pytest.approx((1 + 1 / 2 + 1 / 4 + (1 + 1 / 2 + 1 / 3) / 3) / 4)


def test_every_order_of_the_ties_counts_the_same():
    split = random_split(6, 6, seed=3)
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, (6, 6))
    scores[0] = 0  # all six tie
    for filter_seen in (False, True):
        m = evaluate(Scores(scores), split, ks=KS, filter_seen=filter_seen)
        for u, target in enumerate(split.test.targets):
            hidden = set(split.test.histories[u] - 1) - {target - 1} if filter_seen else set()
            for name in ("HR", "NDCG"):
                for k in KS:
                    expected = by_enumeration(scores[u], target - 1, hidden, name, k)
                    assert m.per_user(f"{name}@{k}")[u] == pytest.approx(expected, abs=1e-12)
            expected = by_enumeration(scores[u], target - 1, hidden, "MRR")
            assert m.per_user("MRR")[u] == pytest.approx(expected, abs=1e-12)


def test_a_constant_model_scores_exactly_chance():
    n, items = 40, 50
    m = evaluate(Scores(np.zeros((n, items))), random_split(n, items), ks=(1, 10, 200))
    assert m["HR@10"] == pytest.approx(10 / items, abs=1e-15)
    assert m["HR@200"] == 1
    chance = sum(1 / math.log2(r + 1) for r in range(1, 11)) / items
    assert m["NDCG@10"] == pytest.approx(chance, abs=1e-15)
    assert m["MRR"] == pytest.approx(sum(1 / r for r in range(1, items + 1)) / items, abs=1e-15)
    assert set(m.ranks) == {(items + 1) / 2}


@pytest.mark.parametrize("levels", [7, 10**6])
def test_scikit_learn_agrees(levels):
    """With many ties and with none. Its NDCG averages over ties; its other metrics do not."""
    from sklearn import metrics

    n, items = 300, 40
    split = random_split(n, max(n, items))
    rng = np.random.default_rng(levels)
    targets = rng.integers(0, items, n)
    split = make_split(list(split.test.histories), targets + 1, n)
    scores = np.full((n, n), -1.0)  # the items past 40 come last
    scores[:, :items] = rng.integers(0, levels, (n, items))
    m = evaluate(Scores(scores), split)
    truth = np.eye(n)[targets]
    for k in (1, 5, 10, 20):
        assert m[f"NDCG@{k}"] == pytest.approx(metrics.ndcg_score(truth, scores, k=k), abs=1e-12)
    if levels > 1000:
        for k in (1, 5, 10, 20):
            share = metrics.top_k_accuracy_score(targets, scores, k=k, labels=range(n))
            assert m[f"HR@{k}"] == pytest.approx(share, abs=1e-12)
        mrr = metrics.label_ranking_average_precision_score(truth, scores)
        assert m["MRR"] == pytest.approx(mrr, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
def test_neural_models_are_ranked_as_sorting_would(bias, dtype):
    torch.manual_seed(0)
    split = random_split(60, 70, seed=1, longest=12)
    model = Dot(70, bias=bias).to(dtype)
    m = evaluate(model, split, batch_size=7)
    model.eval()
    for u, (history, target) in enumerate(
        zip(split.test.histories, split.test.targets, strict=True)
    ):
        query = model.encode(torch.tensor(history[None, -4:]))[0, -1]
        scores = model.table @ query + (model.bias if bias else 0)
        order = 1 + torch.argsort(scores[1:], descending=True, stable=True)
        assert m.ranks[u] == order.tolist().index(target) + 1
        shown = [j for j in order.tolist() if j == target or j not in history]
        assert m.filtered.ranks[u] == shown.index(target) + 1


def test_what_is_encoded_in_several_parts_may_come_as_any_sequence():
    split, model = random_split(20, 30, seed=2), Dot(30)
    one, encode, queries = evaluate(model, split), model.encode, model.queries
    for kind in (tuple, list):
        model.encode = lambda items, kind=kind: kind([encode(items), encode(items)])
        model.queries = lambda parts: queries(parts[1])
        assert evaluate(model, split) == one


def test_batches_and_modes_leave_no_trace(monkeypatch):
    split = random_split(50, 60, seed=2)
    model = Dot(60).train()
    model.dropout.eval()  # a mixture of modes comes back as it was
    state = torch.random.get_rng_state()
    first = evaluate(model, split)
    assert model.training and not model.dropout.training
    assert torch.equal(state, torch.random.get_rng_state())
    monkeypatch.setattr("seqrec_lib.evaluation.ranking._CELLS_CPU", 1)
    second = evaluate(model, split, batch_size=3)
    assert first == second and np.array_equal(first.ranks, second.ranks)
    assert all(p.grad is None for p in model.parameters())


def test_the_longer_histories_are_the_fewer_are_encoded_at_once(monkeypatch):
    monkeypatch.setattr("seqrec_lib.evaluation.ranking._POSITIONS_CPU", 100)
    split = random_split(400, 400, seed=3, longest=12)
    model, shapes = Dot(400, max_len=6).double(), []
    encode = model.encode
    model.encode = lambda items: shapes.append(tuple(items.shape)) or encode(items)
    found = evaluate(model, split)
    users, lengths = zip(*shapes, strict=True)
    assert lengths == tuple(sorted(lengths, reverse=True)) and lengths[0] == 6
    assert all(n == max(100 // length, 16) for n, length in shapes[:-1])
    assert max(users) > 16 and sum(users) == len(split.test)
    assert np.array_equal(found.ranks, evaluate(model, split, batch_size=1).ranks)


@pytest.mark.parametrize("device", ["cpu", "auto", "cuda"])
def test_devices_agree_and_the_model_comes_home(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    split = random_split(50, 60, seed=2)
    model = Dot(60, bias=True).double()  # so that no rank hangs on a rounding
    here, there = evaluate(model, split), evaluate(model, split, device=device)
    assert np.array_equal(here.ranks, there.ranks)
    assert np.array_equal(here.filtered.ranks, there.filtered.ranks)
    few = evaluate(model, split, sampled=9), evaluate(model, split, sampled=9, device=device)
    assert np.array_equal(few[0].ranks, few[1].ranks)
    assert model.table.device.type == "cpu"


def test_modes_come_back_after_an_error():
    split = random_split(5, 60)
    model = Dot(60)
    with torch.no_grad():
        model.table[7] = float("nan")
    with pytest.raises(ValueError, match="NaN scores to 5 of 5 users, first to user 100"):
        evaluate(model, split)
    assert model.training


def test_one_nan_score_is_an_error_that_names_its_user():
    scores = np.zeros((5, 20))
    scores[3, 11] = np.nan
    with pytest.raises(ValueError, match="NaN scores to 1 of 5 users, first to user 103"):
        evaluate(Scores(scores), random_split(5, 20))


def test_numbering_the_items_otherwise_changes_nothing():
    split, rng = random_split(30, 40, seed=5), np.random.default_rng(1)
    model = Dot(40, bias=True)
    new = np.concatenate([[0], 1 + rng.permutation(40)])  # new[j] is what item j is now called
    renamed = make_split([new[h] for h in split.test.histories], new[split.test.targets], 40)
    other = Dot(40, bias=True)
    with torch.no_grad():
        other.table[new] = model.table
        other.bias[new] = model.bias
    a, b = evaluate(model, split), evaluate(other, renamed)
    assert np.array_equal(a.ranks, b.ranks)
    assert np.array_equal(a.filtered.ranks, b.filtered.ranks)


def test_a_user_without_a_history_is_ranked_too():
    split = make_split([[], [2, 3]], [1, 4], num_items=5, train=[[1, 2, 3]])
    m = evaluate(Dot(5), split)
    assert m.ranks[0] == 3  # the mean of nothing: all items tie
    assert evaluate(Dot(5), make_split([[]], [1], 5, train=[[1]])).num_users == 1


def test_metrics_answer_later_questions():
    split = random_split(50, 60, seed=8)
    m = evaluate(Dot(60), split)
    assert list(m) == [f"{n}@{k}" for n in ("HR", "NDCG") for k in (1, 5, 10, 20, 100)] + ["MRR"]
    assert m["HR@1"] == m["NDCG@1"] and m["HR@100"] == 1
    assert m.per_user("NDCG@10").mean() == pytest.approx(m["NDCG@10"])
    assert m.per_user("HR@7").mean() == np.mean(m.ranks <= 7)
    groups = m.by(split.test.histories.lengths > 4)
    assert set(groups) == {False, True}
    sizes = [g.num_users for g in groups.values()]
    weighted = sum(g["MRR"] * g.num_users for g in groups.values()) / sum(sizes)
    assert weighted == pytest.approx(m["MRR"])
    assert groups[True].filtered.num_users == sizes[1]
    assert json.loads(json.dumps(m)) == m
    again = pickle.loads(pickle.dumps(m))
    assert again == m and np.array_equal(again.filtered.ranks, m.filtered.ranks)
    with pytest.raises(KeyError, match="unknown metric 'Recall@10'"):
        m.per_user("Recall@10")
    assert "50 users, all items ranked" in repr(m)


def test_the_wrong_data_or_model_is_refused():
    split = random_split(5, 20)
    with pytest.raises(ValueError, match="knows 21 items and the split has 20"):
        evaluate(Dot(21), split)
    with pytest.raises(ValueError, match="'validation' or 'test'"):
        evaluate(Dot(20), split, part="train")
    layer = nn.Linear(2, 2)
    layer.num_items = 20
    with pytest.raises(TypeError, match="Linear"):
        evaluate(layer, split)
    with pytest.raises(ValueError, match="empty"):
        evaluate(Dot(20), make_split([], [], 20, train=[[1]]))
    with pytest.raises(ValueError, match="sampled must be at least 1, got 0"):
        evaluate(Dot(20), split, sampled=0)
    for ks in ((2.5,), (0, 1)):
        with pytest.raises(ValueError, match="whole numbers from 1"):
            evaluate(Dot(20), split, ks=ks)


@pytest.mark.parametrize("columns", [20, 22])
def test_scores_without_padding_s_column_are_refused(columns):
    class Shifted:
        num_items = 20

        def score_histories(self, histories):
            return np.zeros((len(histories), columns))

    with pytest.raises(ValueError, match=rf"shape \(5, {columns}\).*column 0 for padding"):
        evaluate(Shifted(), random_split(5, 20))


# Intervals


def test_bootstrap_interval_of_a_mean_is_close_to_the_normal_one():
    x = np.random.default_rng(0).normal(3, 2, 4000)
    interval = bootstrap_ci(x)
    half = 1.96 * x.std(ddof=1) / math.sqrt(len(x))
    assert interval.estimate == pytest.approx(x.mean())
    assert interval.low == pytest.approx(x.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(x.mean() + half, abs=0.1 * half)
    assert 3 in interval and list(interval) == [interval.low, interval.high]


@pytest.mark.parametrize("method", [None, "percentile"])
def test_bootstrap_intervals_hold_the_truth_as_often_as_they_say(method):
    """Of skewed hits (5 %), as HR is; 200 samples of 150 users."""
    rng = np.random.default_rng(1)
    samples = rng.random((200, 150)) < 0.15
    held = np.mean([0.15 in bootstrap_ci(s, resamples=400, method=method) for s in samples])
    assert 0.89 <= held <= 0.99


def test_pairs_are_resampled_together():
    rng = np.random.default_rng(2)
    x = rng.normal(0, 10, 500)
    y = x - 1 + rng.normal(0, 0.1, 500)  # far apart alone, close together in pairs
    interval = bootstrap_ci(x, y)
    assert 0.97 < interval.low < 1 < interval.high < 1.03
    assert bootstrap_ci(x, y) == interval != bootstrap_ci(x, y, seed=1)


def test_intervals_where_there_is_little_to_draw_from():
    assert list(bootstrap_ci(np.ones(10))) == [1, 1]
    with pytest.raises(ValueError, match="two values"):
        bootstrap_ci([1.0])
    with pytest.raises(ValueError, match="1 NaN of 3"):
        bootstrap_ci([1, np.nan, 2])
    with pytest.raises(ValueError, match="equal shapes"):
        bootstrap_ci([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="1 of 3 values are infinite"):
        bootstrap_ci([1, 2, np.inf])
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        bootstrap_ci([1, 2, 3], level=95)
    low, high = bootstrap_ci([1, 1, 1, 1, 1, 4], statistic=np.median)  # where BCa knows nothing
    assert low == 1 and 1 <= high <= 4


def test_the_gain_of_one_model_over_another():
    split = random_split(80, 90, seed=4)
    rng = np.random.default_rng(0)
    weak = rng.normal(size=(80, 90))
    strong = weak.copy()
    strong[np.arange(80), split.test.targets - 1] += 1
    a, b = evaluate(Scores(strong), split), evaluate(Scores(weak), split)
    gain = a.ci("MRR", against=b)
    assert gain.estimate == pytest.approx(a["MRR"] - b["MRR"]) and gain.low > 0
    assert a.ci("MRR").high - a.ci("MRR").low > gain.high - gain.low


# Sampled ranking


def test_sampling_every_other_item_is_full_ranking():
    split = make_split([[1, 2, 3]] * 4, [4, 5, 6, 7], num_items=9)
    model = Dot(9)
    full = evaluate(model, split, filter_seen=True)
    sampled = evaluate(model, split, sampled=5)
    assert np.array_equal(full.ranks, sampled.ranks)
    with pytest.raises(ValueError, match="cannot draw 6 items"):
        evaluate(model, split, sampled=6)


def test_sampled_ranking_flatters():
    """Among m negatives a target that g of N - 1 others beat is beaten by m g / (N - 1)."""
    n, items = 300, 400
    split = random_split(n, items, longest=2)
    scores = np.random.default_rng(0).normal(size=(n, items))
    full = evaluate(Scores(scores), split, filter_seen=True)
    sampled = evaluate(Scores(scores), split, sampled=20)
    assert sampled["HR@10"] > 5 * full["HR@10"]
    assert np.mean(sampled.above) == pytest.approx(np.mean(full.above) * 20 / 398, rel=0.1)
    again = evaluate(Scores(scores), split, sampled=20)
    other = evaluate(Scores(scores), split, sampled=20, seed=1)
    assert np.array_equal(sampled.ranks, again.ranks)
    assert not np.array_equal(sampled.ranks, other.ranks)


def test_popular_negatives_are_popular():
    """Item 1 is ten times as frequent as any other: it is among one negative as often."""
    train = [[1] * 10 + [2, 3, 4, 5]]
    split = make_split([[6]] * 2000, [6] * 2000, num_items=6, train=train)
    scores = np.zeros((1, 6))
    scores[0, 0] = 1  # only item 1 beats the target
    model = Scores(np.repeat(scores, 6, axis=0))
    popular = evaluate(model, split, sampled=1, sampled_by="popularity")
    uniform = evaluate(model, split, sampled=1)
    assert np.mean(popular.above) == pytest.approx(10 / 14, abs=0.04)
    assert np.mean(uniform.above) == pytest.approx(1 / 5, abs=0.04)
    with pytest.raises(ValueError, match="'uniform' or 'popularity'"):
        evaluate(model, split, sampled=1, sampled_by="rank")


def test_metrics_by_labels_of_any_kind():
    metrics = evaluate(Dot(20), random_split(6, 20))
    for labels in (np.array(["a", "b"] * 3, object), np.array(["a", "b"] * 3)):
        groups = metrics.by(labels)
        assert [*groups] == ["a", "b"] and all(type(label) is str for label in groups)
