"""The log of interactions: its arrays, and the k-core."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_helpers import logs
from seqrec_lib.data import Interactions, Ragged

LISTS = st.lists(st.lists(st.integers(1, 9), max_size=5), max_size=6)


@given(LISTS, st.data())
def test_ragged_behaves_like_a_list_of_lists(lists, data):
    ragged = Ragged.from_lists(lists)
    assert [list(x) for x in ragged] == lists
    assert list(ragged.owner) == [i for i, x in enumerate(lists) for _ in x]
    assert list(ragged.position) == [j for x in lists for j in range(len(x))]
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=5)) if lists else []
    assert [list(x) for x in ragged.select(rows)] == [lists[i] for i in rows]
    assert [list(x) for x in ragged[1:4]] == lists[1:4]
    odd = ragged.keep(ragged.values % 2 == 1)
    assert [list(x) for x in odd] == [[v for v in x if v % 2] for x in lists]


def test_ragged_gives_views_and_refuses_what_is_outside():
    ragged = Ragged.from_lists([[1, 2], [3]])
    assert np.shares_memory(ragged[0], ragged.values)
    assert list(ragged[-1]) == [3]
    with pytest.raises(IndexError, match="index 2 is out of range for 2 lists"):
        ragged[2]
    with pytest.raises(ValueError, match="offsets must run from 0 to 3"):
        Ragged(np.arange(3), [0, 2])


def test_lists_are_selected_by_number_from_either_end_or_by_a_mask():
    ragged = Ragged.from_lists([[1, 2], [3], [4, 5]])
    for rows in ([0, 2], [-3, -1], np.array([True, False, True]), np.array([0, 2], np.uint8)):
        assert [list(x) for x in ragged.select(rows)] == [[1, 2], [4, 5]]
    assert len(ragged.select([])) == len(ragged.select([False] * 3)) == 0
    for wrong, said in (
        ([3], "index 3 is out of range for 3 lists"),
        ([0, -4], "index -4 is out of range"),
        ([True, False], r"a mask of shape \(2,\) does not fit 3 lists"),
    ):
        with pytest.raises(IndexError, match=said):
            ragged.select(wrong)
    with pytest.raises(TypeError, match="whole numbers or a mask, not float64"):
        ragged.select([0.0])


def test_users_are_selected_by_a_mask_too():
    inter = Interactions([[1, 2], [3], [1, 3]], 3, timestamps=np.arange(5))
    part = inter.select_users(inter.lengths > 1)
    assert [list(s) for s in part.sequences] == [[1, 2], [1, 3]]
    assert part.timestamps.tolist() == [0, 1, 3, 4] and part.user_ids.tolist() == [0, 2]
    assert inter.select_users([-1]).select_users([0]).user_ids.tolist() == [2]


def test_items_must_be_in_the_catalogue():
    with pytest.raises(ValueError, match="must be numbered 1..2"):
        Interactions([[1, 3]], num_items=2)
    with pytest.raises(ValueError, match="must be numbered 1..2"):
        Interactions([[0, 1]], num_items=2)
    with pytest.raises(ValueError, match="timestamps has 1 entries, 2 were expected"):
        Interactions([[1, 2]], num_items=2, timestamps=np.array([5]))
    with pytest.raises(TypeError, match="whole numbers, got .*1.9"):
        Interactions([[1, 2], [1.9, 2.2]], num_items=2)


def test_times_are_known_and_lists_will_do():
    days = np.array(["2020-01-01", "NaT"], dtype="datetime64[D]")
    with pytest.raises(ValueError, match=r"timestamps are numbers, .* not datetime64\[D\]; turn"):
        Interactions([[1, 2]], 2, timestamps=days)
    with pytest.raises(ValueError, match="2 of 4 timestamps are not finite"):
        Interactions([[1, 2], [1, 2]], 2, timestamps=np.array([1, np.nan, np.inf, 4]))
    by_list = Interactions(
        [[1, 2, 2]], 2, timestamps=[1, 2, 3], user_ids=["u"], item_names=["", "a", "b"]
    )
    assert by_list.k_core(2).timestamps.tolist() == [2, 3]


def test_statistics_and_titles():
    inter = Interactions([[1, 2, 1], [2]], num_items=4, item_names=np.array(["", *"abcd"]))
    assert inter.statistics == {
        "users": 2, "items": 4, "interactions": 4, "mean_length": 2.0, "density": 0.5,
    }  # fmt: skip
    assert list(inter.item_counts) == [0, 2, 2, 0, 0]
    assert inter.describe_item(3) == "c"
    assert Interactions([[1]], num_items=1).describe_item(1) == "item 1"


def naive_k_core(sequences, times, k):
    """Remove one offender at a time."""
    users = {u: list(zip(s, t, strict=True)) for u, (s, t) in enumerate(zip(sequences, times))}  # noqa: B905
    while True:
        counts = Counter(item for events in users.values() for item, _ in events)
        few = next((u for u, events in users.items() if len(events) < k), None)
        rare = next((i for i, n in counts.items() if n < k), None)
        if few is not None:
            del users[few]
        elif rare is not None:
            users = {u: [e for e in events if e[0] != rare] for u, events in users.items()}
        else:
            return users


@given(logs(), st.integers(1, 4))
def test_k_core_equals_the_naive_one(inter, k):
    times = Ragged(inter.timestamps, inter.sequences.offsets)
    expected = naive_k_core([list(s) for s in inter.sequences], [list(t) for t in times], k)
    core = inter.k_core(k)
    got = {
        int(user) - 100: list(zip(core.item_ids[items] // 10, when, strict=True))
        for user, items, when in zip(
            core.user_ids, core.sequences, Ragged(core.timestamps, core.sequences.offsets),
            strict=True,
        )
    }  # fmt: skip
    assert got == expected
    assert core.dropped["below k-core"] == inter.num_interactions - core.num_interactions
    assert core.num_items == len({i for events in expected.values() for i, _ in events})
    assert core.k_core(k).num_interactions == core.num_interactions


def test_k_core_keeps_titles_with_their_items():
    inter = Interactions(
        [[1, 3], [3, 2], [3, 2]], num_items=3, item_names=np.array(["", "a", "b", "c"])
    )
    core = inter.k_core(2)
    assert [[core.describe_item(i) for i in s] for s in core.sequences] == [["c", "b"], ["c", "b"]]
    assert list(core.item_ids) == [0, 2, 3]


def test_k_core_counts_all_that_it_has_dropped():
    inter = Interactions([[1, 2], [1, 2, 3], [1, 2], [1]], num_items=3)
    once, twice = inter.k_core(2), inter.k_core(2).k_core(3)
    assert once.dropped["below k-core"] == 2
    assert twice.dropped["below k-core"] == inter.num_interactions - twice.num_interactions


def test_k_core_keeps_who_is_who_where_users_had_no_ids():
    core = Interactions([[1, 3], [2], [3, 1]], num_items=3).k_core(2)
    assert core.to_frame().to_dict("list") == {"user": [0, 0, 2, 2], "item": [1, 3, 3, 1]}


@given(logs())
def test_select_users_takes_everything_of_theirs(inter):
    rows = np.arange(inter.num_users)[::-2]
    part = inter.select_users(rows)
    times = Ragged(inter.timestamps, inter.sequences.offsets)
    assert [list(s) for s in part.sequences] == [list(inter.sequences[r]) for r in rows]
    assert part.timestamps.tolist() == [t for r in rows for t in times[r]]
    assert part.user_ids.tolist() == [100 + r for r in rows]


def test_to_frame_speaks_the_language_of_the_source():
    inter = Interactions(
        [[1, 2], [2]], num_items=2, timestamps=np.array([5, 6, 7]),
        user_ids=np.array(["ann", "bob"]), item_ids=np.array([0, 70, 80]),
        item_names=np.array(["", "seven", "eight"]),
    )  # fmt: skip
    assert inter.to_frame().to_dict("list") == {
        "user": ["ann", "ann", "bob"],
        "item": [70, 80, 80],
        "timestamp": [5, 6, 7],
        "title": ["seven", "eight", "eight"],
    }


def test_offsets_that_go_back_are_refused():
    with pytest.raises(ValueError, match="must not decrease; got 4 before 2"):
        Ragged(np.arange(5), [0, 4, 2, 5])
