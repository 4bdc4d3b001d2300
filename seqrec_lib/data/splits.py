"""Splitting a log into training, validation and test.

Two protocols. :func:`leave_one_out` asks for each user's last item; it needs no clock, and
lets training see other users' future. :func:`global_temporal` draws one line through time
for everybody, as a system in use would meet it.

Both count what they leave out: every event of the input is in ``train``, in the history or
the target of a part, or counted in ``Split.dropped``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .interactions import Interactions, Ragged

__all__ = ["Part", "Split", "leave_one_out"]


@dataclass(frozen=True)
class Part:
    """Questions to ask of a model: given this history, what comes next?

    Attributes:
        users: (n,) int64, rows of the Interactions that was split.
        histories: n sequences of items, in time order, none empty.
        targets: (n,) int64, the item that came next.
    """

    users: np.ndarray
    histories: Ragged
    targets: np.ndarray

    def __post_init__(self):
        if not len(self.users) == len(self.histories) == len(self.targets):
            raise ValueError(
                f"{len(self.users)} users, {len(self.histories)} histories and "
                f"{len(self.targets)} targets: a part needs one of each per question"
            )

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Split:
    """A log in three parts.

    Attributes:
        train: what a model may learn from. ``train.num_items`` is that of the whole log.
        validation: for early stopping and for choosing hyperparameters.
        test: for the number that is reported.
        name: "leave-one-out" or "global-temporal".
        dropped: events of the log that are in no part, by reason.
        notes: other counts worth knowing (users, cutoff), by name.
    """

    train: Interactions
    validation: Part
    test: Part
    name: str
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_items(self) -> int:
        return self.train.num_items

    def part(self, name: str) -> Part:
        """The part called ``name``: "validation" or "test"."""
        if name not in ("validation", "test"):
            raise ValueError(f"part must be 'validation' or 'test', got {name!r}")
        return getattr(self, name)

    def __repr__(self) -> str:
        return (
            f"Split({self.name}: {self.train.num_interactions:,} training events of "
            f"{self.train.num_users:,} users; {len(self.validation):,} validation and "
            f"{len(self.test):,} test questions)"
        )


def leave_one_out(inter: Interactions) -> Split:
    """Each user's last item is the test target, the one before it the validation target.

    Users with fewer than three events cannot give a target, a validation target and
    something to learn from: they stay in training whole, counted in
    ``notes["users kept whole in training"]``. ``split.train`` has the same users, in the
    same rows, as ``inter``. Test histories include the validation item.
    """
    sequences, lengths = inter.sequences, inter.lengths
    users = np.flatnonzero(lengths >= 3)
    held_out = np.where(lengths >= 3, 2, 0)
    from_end = np.repeat(lengths, lengths) - sequences.position  # 1 for a user's last event
    train = inter.keep_events(from_end > np.repeat(held_out, lengths))

    def part(place: int) -> Part:
        """The question whose target is ``place`` from the end."""
        targets = sequences.values[sequences.offsets[users + 1] - place].astype(np.int64)
        before = sequences.keep(from_end > place).select(users)
        return Part(users, before, targets)

    return Split(
        train=train,
        validation=part(2),
        test=part(1),
        name="leave-one-out",
        notes={"users kept whole in training": int((lengths < 3).sum())},
    )
