"""The two splits, against references that loop, and by what must hold of any log."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data_helpers import logs, needs
from seqrec_lib.data import (
    Interactions,
    Part,
    Ragged,
    global_temporal,
    leave_one_out,
    load_dataset,
)

QUANTILES = st.sampled_from([0.3, 0.5, 0.7, 0.9])


def questions(part):
    """{user: (history, target)}"""
    rows = zip(part.users, part.histories, part.targets, strict=True)
    return {int(u): ([int(i) for i in h], int(t)) for u, h, t in rows}


def test_leave_one_out_by_hand():
    inter = Interactions([[1, 2, 3, 4], [5, 6], [2, 2, 1]], num_items=6)
    split = leave_one_out(inter)
    assert [list(s) for s in split.train.sequences] == [[1, 2], [5, 6], [2]]
    assert questions(split.validation) == {0: ([1, 2], 3), 2: ([2], 2)}
    assert questions(split.test) == {0: ([1, 2, 3], 4), 2: ([2, 2], 1)}
    assert split.notes == {"users kept whole in training": 1}
    assert split.num_items == 6
    assert split.part("test") is split.test
    with pytest.raises(ValueError, match="'validation' or 'test', got 'tset'"):
        split.part("tset")


def test_a_refit_trains_on_everything_but_the_test_items():
    inter = Interactions([[1, 2, 3, 4], [5, 6], [2, 2, 1]], num_items=6)
    split, refit = leave_one_out(inter), leave_one_out(inter, refit=True)
    assert [list(s) for s in refit.train.sequences] == [[1, 2, 3], [5, 6], [2, 2]]
    assert questions(refit.test) == questions(split.test)
    assert len(refit.validation) == 0 and refit.name == "leave-one-out-refit"


@given(logs())
def test_leave_one_out_equals_the_naive_one_and_loses_nothing(inter):
    split = leave_one_out(inter)
    validation, test = questions(split.validation), questions(split.test)
    total = 0
    for user, sequence in enumerate(inter.sequences):
        sequence = list(sequence)
        train = list(split.train.sequences[user])
        if len(sequence) < 3:
            assert train == sequence and user not in test and user not in validation
            total += len(train)
        else:
            assert train == sequence[:-2]
            assert validation[user] == (sequence[:-2], sequence[-2])
            assert test[user] == (sequence[:-1], sequence[-1])
            total += len(train) + 2
    assert total == inter.num_interactions
    assert len(split.train.timestamps) == split.train.num_interactions


def naive_global_temporal(inter, quantile, held_out):
    """As the docstring says, by loops. ``held_out``: the validation users."""
    times = Ragged(inter.timestamps, inter.sequences.offsets)
    logs_ = [list(zip(s, t, strict=True)) for s, t in zip(inter.sequences, times, strict=True)]
    stamps = sorted(inter.timestamps)
    cutoff = stamps[int(quantile * (len(stamps) - 1))]
    train = {
        u: [i for i, t in log if t <= cutoff] for u, log in enumerate(logs_) if u not in held_out
    }
    train = {u: items for u, items in train.items() if items}
    known = {i for items in train.values() for i in items}

    def ask(log):
        *history, target = [i for i, _ in log]
        history = [i for i in history if i in known]
        return (history, target) if target in known and history else None

    validation = {u: ask([e for e in logs_[u] if e[1] <= cutoff]) for u in held_out}
    test = {u: ask(log) for u, log in enumerate(logs_) if log and log[-1][1] > cutoff}
    drop_none = lambda part: {u: q for u, q in part.items() if q}  # noqa: E731
    return cutoff, train, drop_none(validation), drop_none(test)


def split_or_discard(inter, quantile, fraction, seed):
    stamps = sorted(inter.timestamps)
    assume(stamps and stamps[int(quantile * (len(stamps) - 1))] < stamps[-1])
    return global_temporal(inter, quantile, validation_fraction=fraction, seed=seed)


@given(logs(), QUANTILES, st.sampled_from([0.0, 0.3, 0.6]), st.integers(0, 3))
def test_global_temporal_equals_the_naive_one(inter, quantile, fraction, seed):
    split = split_or_discard(inter, quantile, fraction, seed)
    cutoff = split.notes["cutoff"]
    times = Ragged(inter.timestamps, inter.sequences.offsets)
    early = [u for u, t in enumerate(times) if (t <= cutoff).any()]
    held_out = set(early) - {int(u) - 100 for u in split.train.user_ids}
    expected = naive_global_temporal(inter, quantile, held_out)
    train = {
        int(u) - 100: list(s)
        for u, s in zip(split.train.user_ids, split.train.sequences, strict=True)
    }
    assert (cutoff, train, questions(split.validation), questions(split.test)) == expected
    enough = [u for u, t in enumerate(times) if (t <= cutoff).sum() >= 2]
    assert held_out <= set(enough)
    assert len(held_out) == max(min(round(fraction * len(enough)), len(enough) - 1), 0)


@given(logs(), QUANTILES, st.integers(0, 3))
def test_global_temporal_loses_nothing_and_looks_at_no_future(inter, quantile, seed):
    split = split_or_discard(inter, quantile, 0.4, seed)
    cutoff = split.notes["cutoff"]
    train = split.train
    assert (train.timestamps <= cutoff).all()
    trained_on = {int(u) - 100 for u in train.user_ids}
    validation, test = questions(split.validation), questions(split.test)
    assert not trained_on & set(validation)
    known = set(train.sequences.values)
    for history, target in [*validation.values(), *test.values()]:
        assert history and known >= {*history, target}

    # each event of the log is in a part, or counted: nothing twice, nothing lost
    times = Ragged(inter.timestamps, inter.sequences.offsets)
    lost = Counter()
    for user, (items, when) in enumerate(zip(inter.sequences, times, strict=True)):
        for item, time in zip(items, when, strict=True):
            in_train = time <= cutoff and user in trained_on
            asked = user in test or (user in validation and time <= cutoff)
            if not in_train and not (asked and item in known):
                reason = "other events of dropped questions"
                lost[reason if item in known else "events of items unseen in training"] += 1
    assert Counter(split.dropped) + Counter() == lost


def small():
    # cutoff at quantile .5: time 5. User 4 knows only item 4; user 5 appears late.
    sequences = [[1, 2, 3], [2, 1, 2], [1, 1, 4], [3, 2, 1], [4], [1, 2]]
    times = [[1, 2, 9], [1, 3, 8], [2, 4, 9], [1, 2, 5], [9], [8, 9]]
    return Interactions(sequences, num_items=4, timestamps=np.concatenate(times))


def test_global_temporal_by_hand():
    split = global_temporal(small(), quantile=0.5, validation_fraction=0)
    assert split.notes["cutoff"] == 4
    assert [list(s) for s in split.train.sequences] == [[1, 2], [2, 1], [1, 1], [3, 2]]
    assert list(split.train.user_ids) == [0, 1, 2, 3]
    # user 2's target, item 4, is unseen; so is user 4's only item
    assert questions(split.test) == {
        0: ([1, 2], 3), 1: ([2, 1], 2), 3: ([3, 2], 1), 5: ([1], 2),
    }  # fmt: skip
    assert split.notes["test questions dropped, target unseen in training"] == 2
    assert split.dropped["events of items unseen in training"] == 2
    assert len(split.validation) == 0


def test_global_temporal_depends_on_the_seed_alone():
    inter = small()
    first, again = (global_temporal(inter, 0.5, 0.5, seed=3) for _ in range(2))
    assert questions(first.validation) == questions(again.validation)
    chosen = {tuple(global_temporal(inter, 0.5, 0.5, seed=s).train.user_ids) for s in range(20)}
    assert len(chosen) > 1


def test_global_temporal_says_what_it_needs():
    with pytest.raises(ValueError, match="mine has no timestamps.*leave_one_out"):
        global_temporal(Interactions([[1, 1]], num_items=1, name="mine"))
    with pytest.raises(ValueError, match="quantile must be between 0 and 1"):
        global_temporal(small(), quantile=90)
    with pytest.raises(ValueError, match="no event of .* is after the cutoff 5"):
        global_temporal(Interactions([[1, 1]], num_items=1, timestamps=np.array([5, 5])))
    with pytest.raises(ValueError, match="decrease within a user"):
        global_temporal(Interactions([[1, 1]], num_items=1, timestamps=np.array([5, 4])))


def test_a_part_needs_one_history_per_target():
    with pytest.raises(ValueError, match="1 users, 2 histories and 1 targets"):
        Part(np.array([0]), Ragged.from_lists([[1], [2]]), np.array([1]))


@needs("ml-1m/ratings.csv.gz")
def test_what_leave_one_out_leaks_on_ml_1m():
    """Training reaches past the test events of others; the global split does not."""
    inter = load_dataset("ml-1m")
    clock = Ragged(inter.timestamps, inter.sequences.offsets)
    last = np.array([t[-1] for t in clock])
    assert (leave_one_out(inter).train.timestamps > np.median(last)).mean() > 0.2
    split = global_temporal(inter)
    assert split.train.timestamps.max() <= split.notes["cutoff"] < last[split.test.users].min()
