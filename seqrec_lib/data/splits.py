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
from functools import cached_property

import numpy as np

from .interactions import Interactions, Ragged

__all__ = ["Part", "Split", "global_temporal", "leave_one_out"]


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

    @cached_property
    def seen(self) -> Ragged:
        """Per question, the distinct items of the history in rising order, the target left out."""
        above = int(self.histories.values.max(initial=0)) + 1
        pairs = np.unique(self.histories.owner * above + self.histories.values)
        owner, item = np.divmod(pairs, above)
        other = item != self.targets[owner]
        lengths = np.bincount(owner[other], minlength=len(self))
        return Ragged.from_lengths(item[other].astype(np.int64), lengths)


@dataclass(frozen=True)
class Split:
    """A log in three parts.

    Attributes:
        train: what a model may learn from. ``train.num_items`` is that of the whole log.
        validation: for early stopping and for choosing hyperparameters.
        test: for the number that is reported.
        name: "leave-one-out", "leave-one-out-refit" or "global-temporal".
        dropped: how many events of the log are in no part, by reason.
        notes: other numbers worth knowing (users, questions, the cutoff), by name.
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


def leave_one_out(inter: Interactions, refit: bool = False) -> Split:
    """Each user's last item is the test target, the one before it the validation target.

    Users with fewer than three events cannot give a target, a validation target and
    something to learn from: they stay in training whole, counted in
    ``notes["users kept whole in training"]``. ``split.train`` has the same users, in the
    same rows, as ``inter``. Test histories include the validation item. Nothing is dropped.

    Args:
        refit: for a last training, when settings and the number of epochs have been chosen:
            training holds the validation targets, too, and the validation part is empty.
    """
    lengths = inter.lengths
    users = np.flatnonzero(lengths >= 3)
    from_end = np.repeat(lengths, lengths) - inter.sequences.position  # 1 for a last event
    short = np.repeat(lengths < 3, lengths)
    return Split(
        train=inter.keep_events(short | (from_end > (1 if refit else 2))),
        validation=_questions(inter.sequences.keep(from_end > 1), users[:0] if refit else users),
        test=_questions(inter.sequences, users),
        name="leave-one-out-refit" if refit else "leave-one-out",
        notes={"users kept whole in training": int((lengths < 3).sum())},
    )


def global_temporal(
    inter: Interactions, quantile: float = 0.9, validation_fraction: float = 0.1, seed: int = 0
) -> Split:
    """One moment for everybody: training is what happened until then.

    The cutoff is the ``quantile`` of all timestamps.

    - *Test*: users with an event after the cutoff. The target is their last item, the history
      everything of theirs before it, on both sides of the cutoff.
    - *Validation*: a random ``validation_fraction`` of the users with two events or more up to
      the cutoff. The target is their last item up to the cutoff, the history what precedes it,
      and none of it is in training. They may be test users as well: their test histories are
      then new to the model, as those of users who joined late are.
    - *Training*: the events up to the cutoff of all other users.

    A model knows nothing of items that training never shows. A question whose target is one is
    dropped; from histories such items are taken out; both are counted, and so are questions
    left without a history. ``train.num_items`` remains that of the whole log.

    After Gusak et al. 2025 (arXiv:2507.16289): their global temporal split with the target
    "last" and validation by user. They take a fixed number of validation users; what becomes
    of unseen items is decided here.

    Args:
        inter: a log with timestamps.
        quantile: the share of events up to the cutoff, between 0 and 1.
        validation_fraction: of the users with two events or more up to the cutoff.
        seed: of the choice of validation users.

    Raises:
        ValueError: there are no timestamps, they do not increase within users, or no event is
            after the cutoff.
    """
    if not inter.has_timestamps:
        raise ValueError(
            f"{inter.name} has no timestamps, and a global temporal split needs them. Use "
            "leave_one_out, or a log with timestamps (ml-100k, ml-latest-small, ml-1m)."
        )
    if not (0 < quantile < 1 and 0 <= validation_fraction < 1):
        raise ValueError(
            "quantile must be between 0 and 1, and validation_fraction at least 0 and below 1; "
            f"got {quantile} and {validation_fraction}"
        )
    sequences, items, owner = inter.sequences, inter.sequences.values, inter.sequences.owner
    times = inter.timestamps
    if np.any((times[1:] < times[:-1]) & (owner[1:] == owner[:-1])):
        raise ValueError(f"the timestamps of {inter.name} decrease within a user: sort the events")
    cutoff = np.quantile(times, quantile, method="lower") if len(times) else 0
    early = times <= cutoff
    if early.all():
        raise ValueError(f"no event of {inter.name} is after the cutoff {cutoff}: lower quantile")

    num_early = np.bincount(owner[early], minlength=inter.num_users)
    eligible = np.flatnonzero(num_early >= 2)
    size = min(round(validation_fraction * len(eligible)), len(eligible) - 1)
    chosen = np.random.default_rng(seed).choice(eligible, max(size, 0), replace=False)
    held_out = np.zeros(inter.num_users, dtype=bool)
    held_out[chosen] = True

    in_train = early & ~held_out[owner]
    seen = np.bincount(items[in_train], minlength=inter.num_items + 1) > 0
    usable = seen[items]
    notes, covered = {"cutoff": cutoff.item()}, in_train.copy()

    def part(name: str, users: np.ndarray, period: np.ndarray, targets: np.ndarray) -> Part:
        """Questions to ``users`` about the last of their events in ``period``."""
        asked = usable[targets]
        before = np.bincount(owner[period & usable], minlength=inter.num_users)[users] - asked
        kept = asked & (before > 0)
        notes[f"{name} questions dropped, target unseen in training"] = int((~asked).sum())
        notes[f"{name} questions dropped, no history"] = int((asked & (before == 0)).sum())
        inside = np.zeros(inter.num_users, dtype=bool)
        inside[users[kept]] = True
        events = period & usable & inside[owner]
        np.logical_or(covered, events, out=covered)
        return _questions(sequences.keep(events), users[kept])

    first = sequences.offsets[:-1]
    users = np.sort(chosen)
    validation = part("validation", users, early, first[users] + num_early[users] - 1)
    users = np.flatnonzero(inter.lengths > num_early)
    test = part("test", users, np.ones_like(early), sequences.offsets[users + 1] - 1)

    rows = np.flatnonzero(np.bincount(owner[in_train], minlength=inter.num_users))
    return Split(
        train=inter.keep_events(in_train).select_users(rows),
        validation=validation,
        test=test,
        name="global-temporal",
        dropped={
            "events of items unseen in training": int((~covered & ~usable).sum()),
            "other events of dropped questions": int((~covered & usable).sum()),
        },
        notes=notes,
    )


def _questions(sequences: Ragged, users: np.ndarray) -> Part:
    """For each of ``users``: what is the last of these items, given those before it?"""
    chosen = sequences.select(users)
    is_target = np.zeros(len(chosen.values), dtype=bool)
    is_target[chosen.offsets[1:] - 1] = True
    targets = chosen.values[is_target].astype(np.int64)
    return Part(np.asarray(users, dtype=np.int64), chosen.keep(~is_target), targets)
