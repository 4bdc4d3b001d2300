"""A log of interactions: who took what, in which order.

Everything in the library starts from an :class:`Interactions`. It keeps the whole
log in two flat arrays (all events, user after user, each user's in time order, and
where each user begins), so that twenty million events cost a few hundred megabytes
and every operation on them is one NumPy expression.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

__all__ = ["Interactions", "Ragged", "Truth"]


class Ragged(Sequence):
    """A list of arrays of different lengths, stored as one array.

    ``ragged[i]`` is a view, never a copy. Shapes: ``values`` (N,), ``offsets`` (n + 1,).
    """

    __slots__ = ("values", "offsets")

    def __init__(self, values: np.ndarray, offsets: np.ndarray):
        self.values = np.asarray(values)
        self.offsets = np.asarray(offsets, dtype=np.int64)
        if len(self.offsets) == 0 or self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            raise ValueError(
                f"offsets must run from 0 to {len(self.values)}, the number of values; "
                f"got {self.offsets[:1]} .. {self.offsets[-1:]}"
            )
        if (back := np.flatnonzero(self.lengths < 0)).size:
            first = self.offsets[back[0] : back[0] + 2]
            raise ValueError(f"offsets must not decrease; got {first[0]} before {first[1]}")

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int]], dtype=np.int64) -> Ragged:
        arrays = [np.asarray(x) for x in lists]
        for array in arrays:
            if array.size and array.dtype.kind not in "iub":
                raise TypeError(f"items are whole numbers, got {array[0]!r}")
        arrays = [array.astype(dtype) for array in arrays]
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype)
        return cls.from_lengths(values, [len(a) for a in arrays])

    @classmethod
    def from_lengths(cls, values: np.ndarray, lengths: Sequence[int]) -> Ragged:
        return cls(values, np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]))

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def owner(self) -> np.ndarray:
        """For each value, the index of the list it belongs to. Shape (N,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def position(self) -> np.ndarray:
        """For each value, its index within its list. Shape (N,)."""
        return np.arange(len(self.values)) - np.repeat(self.offsets[:-1], self.lengths)

    def keep(self, mask: np.ndarray) -> Ragged:
        """The same lists with the values where ``mask`` (N,) is true; some may become empty."""
        counts = np.concatenate([[0], np.cumsum(mask)])
        return Ragged(self.values[mask], counts[self.offsets])

    def select(self, rows: np.ndarray) -> Ragged:
        """The lists ``rows``, in that order; see :meth:`numbers`."""
        rows = self.numbers(rows)
        lengths = self.lengths[rows]
        out = Ragged.from_lengths(np.empty(lengths.sum(), self.values.dtype), lengths)
        out.values[:] = self.values[np.repeat(self.offsets[rows], lengths) + out.position]
        return out

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """Which lists ``rows`` means: their numbers, 0 or more.

        Args:
            rows: (m,) numbers of lists, from -1 backwards; or (n,) bool, a mask over them all.

        Raises:
            IndexError: there is no such list, or the mask has another length.
            TypeError: ``rows`` are no whole numbers.
        """
        rows = np.asarray(rows)
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise IndexError(f"a mask of shape {rows.shape} does not fit {len(self)} lists")
            return np.flatnonzero(rows)
        if rows.size and rows.dtype.kind not in "iu":
            raise TypeError(f"lists are selected by whole numbers or a mask, not {rows.dtype}")
        rows = rows.astype(np.int64)
        outside = rows[(rows < -len(self)) | (rows >= len(self))]
        if outside.size:
            raise IndexError(f"index {outside[0]} is out of range for {len(self)} lists")
        return np.where(rows < 0, rows + len(self), rows)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i):
        if isinstance(i, slice):
            return self.select(np.arange(len(self))[i])
        i = int(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"index {i} is out of range for {len(self)} lists")
        i %= len(self)
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.values[a:b] for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True))

    def __repr__(self) -> str:
        return f"Ragged({len(self)} lists, {len(self.values)} values)"


@dataclass(frozen=True)
class Truth:
    """What is known of a synthetic world.

    Attributes:
        rule: the rule, in words.
        best: the best score any model could reach when the last event of each user is
            predicted from all before it: ``{"HR@10": .., "NDCG@10": .., ..}``. It is the mean
            over all users that were drawn, also where some of them are selected.
        sources: (N,) for each event, the position (in its user's sequence) of the event
            that decided it, or -1 where none did.
        oracle: a model that knows the rule and reaches ``best``; ``sr.evaluate`` takes it.
    """

    rule: str
    best: Mapping[str, float]
    sources: np.ndarray
    oracle: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Interactions:
    """A log of interactions, grouped by user and ordered in time within each user.

    Attributes:
        sequences: each user's items in time order; items are numbered 1..num_items,
            0 is kept for padding.
        num_items: the size of the catalogue (items without an event count too).
        timestamps: (N,) seconds, aligned with ``sequences.values``; None where the
            source has none (then the order in the file is the order in time).
        user_ids: (num_users,) the users' ids in the source.
        item_ids: (num_items + 1,) the items' ids in the source; entry 0 is padding's.
        item_names: (num_items + 1,) titles, or None.
        name: what to call the log in tables and messages.
        truth: for a synthetic world, what is known of it.
        dropped: how many rows or events were left out on the way here, by reason.
    """

    sequences: Ragged
    num_items: int
    timestamps: np.ndarray | None = None
    user_ids: np.ndarray | None = None
    item_ids: np.ndarray | None = None
    item_names: np.ndarray | None = None
    name: str = "interactions"
    truth: Truth | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.sequences, Ragged):
            object.__setattr__(self, "sequences", Ragged.from_lists(self.sequences))
        values = self.sequences.values
        if len(values) and (values.min() < 1 or values.max() > self.num_items):
            raise ValueError(
                f"items must be numbered 1..{self.num_items} (0 is padding); "
                f"found {values.min()}..{values.max()}. read_interactions numbers them for you."
            )
        for what, size in (
            ("timestamps", len(values)),
            ("user_ids", len(self.sequences)),
            ("item_ids", self.num_items + 1),
            ("item_names", self.num_items + 1),
        ):
            array = getattr(self, what)
            if array is None:
                continue
            if not isinstance(array, np.ndarray):
                object.__setattr__(self, what, array := np.asarray(array))
            if len(array) != size:
                raise ValueError(f"{what} has {len(array)} entries, {size} were expected")
        clock = self.timestamps
        if clock is not None and len(clock) and clock.dtype.kind not in "iuf":
            raise ValueError(
                f"timestamps are numbers, seconds since 1970, not {clock.dtype}; turn dates into "
                "such: dates.astype('datetime64[s]').astype(int)"
            )
        unknown = 0 if clock is None or clock.dtype.kind != "f" else (~np.isfinite(clock)).sum()
        if unknown:
            raise ValueError(
                f"{unknown} of {len(values)} timestamps are not finite; leave those events out, or "
                "give no timestamps and events in time order"
            )

    @property
    def num_users(self) -> int:
        return len(self.sequences)

    @property
    def num_interactions(self) -> int:
        return len(self.sequences.values)

    @property
    def has_timestamps(self) -> bool:
        return self.timestamps is not None

    @property
    def lengths(self) -> np.ndarray:
        """(num_users,) events per user."""
        return self.sequences.lengths

    @property
    def item_counts(self) -> np.ndarray:
        """(num_items + 1,) events per item; entry 0 is 0."""
        return np.bincount(self.sequences.values, minlength=self.num_items + 1)

    @property
    def statistics(self) -> dict[str, float]:
        """Users, items, interactions, mean length and density, as data set tables print them."""
        cells = max(self.num_users * self.num_items, 1)
        return {
            "users": self.num_users,
            "items": self.num_items,
            "interactions": self.num_interactions,
            "mean_length": self.num_interactions / max(self.num_users, 1),
            "density": self.num_interactions / cells,
        }

    def describe_item(self, item: int) -> str:
        """The title of an item, or its id in the source, or its number."""
        for table in (self.item_names, self.item_ids):
            if table is not None:
                return str(table[item])
        return f"item {item}"

    def keep_events(self, mask: np.ndarray, **changes) -> Interactions:
        """The same users and catalogue with only the events where ``mask`` (N,) is true."""
        changes.setdefault("timestamps", None if self.timestamps is None else self.timestamps[mask])
        changes.setdefault("truth", None)  # positions no longer mean what they meant
        return replace(self, sequences=self.sequences.keep(mask), **changes)

    def select_users(self, rows: np.ndarray, **changes) -> Interactions:
        """Only the users ``rows``, in that order; the catalogue stays.

        Where users had no ids, these rows become their ids.

        Args:
            rows: (m,) numbers of users, from -1 backwards; or (num_users,) bool, a mask.

        Raises:
            IndexError: there is no such user, or the mask has another length.
        """
        rows = self.sequences.numbers(rows)

        def select(events: np.ndarray) -> np.ndarray:
            return Ragged(events, self.sequences.offsets).select(rows).values

        if self.timestamps is not None:
            changes.setdefault("timestamps", select(self.timestamps))
        changes.setdefault("user_ids", rows if self.user_ids is None else self.user_ids[rows])
        if self.truth is not None:
            changes.setdefault("truth", replace(self.truth, sources=select(self.truth.sources)))
        return replace(self, sequences=self.sequences.select(rows), **changes)

    def k_core(self, k: int) -> Interactions:
        """Remove users and items with fewer than ``k`` events, again and again until none is left.

        Items that remain are renumbered 1..num_items in their old order; ``item_ids`` and
        ``user_ids`` hold their old numbers where they had no ids. The result is the
        largest part of the log in which everyone has ``k`` events (it does not depend on the
        order of removal). ``dropped["below k-core"]`` counts the events removed.
        """
        user, item = self.sequences.owner, self.sequences.values
        alive = np.ones(len(item), dtype=bool)
        while True:
            per_user = np.bincount(user[alive], minlength=self.num_users)
            per_item = np.bincount(item[alive], minlength=self.num_items + 1)
            still = alive & (per_user[user] >= k) & (per_item[item] >= k)
            if still.sum() == alive.sum():
                break
            alive = still
        core = self.keep_events(alive).select_users(np.flatnonzero(per_user > 0))
        kept = np.flatnonzero(per_item > 0)
        number = np.zeros(self.num_items + 1, dtype=np.int64)
        number[kept] = np.arange(1, len(kept) + 1)
        with_padding = np.concatenate([[0], kept])
        before = self.dropped.get("below k-core", 0)
        dropped = {**self.dropped, "below k-core": before + int((~alive).sum())}
        return replace(
            core,
            sequences=Ragged(number[core.sequences.values], core.sequences.offsets),
            num_items=len(kept),
            item_ids=with_padding if self.item_ids is None else self.item_ids[with_padding],
            item_names=None if self.item_names is None else self.item_names[with_padding],
            dropped=dropped,
        )

    def to_frame(self):
        """The log as a pandas DataFrame: user, item (ids in the source), timestamp, title."""
        import pandas as pd

        events, rows = self.sequences.values, self.sequences.owner
        columns = {"user": rows if self.user_ids is None else self.user_ids[rows]}
        columns["item"] = events if self.item_ids is None else self.item_ids[events]
        if self.timestamps is not None:
            columns["timestamp"] = self.timestamps
        if self.item_names is not None:
            columns["title"] = self.item_names[events]
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        clock = "with" if self.has_timestamps else "without"
        return (
            f"Interactions({self.name!r}: {self.num_users:,} users, {self.num_items:,} items, "
            f"{self.num_interactions:,} interactions, {clock} timestamps)"
        )
