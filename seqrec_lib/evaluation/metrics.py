"""From counts to metrics: how many items beat the target, how many tie with it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from .intervals import Interval, bootstrap_ci

__all__ = ["KS", "Metrics"]

KS = (1, 5, 10, 20, 100)


def _gains(name: str, depth: int) -> np.ndarray:
    """What a target at rank 1, 2, .., ``depth`` is worth under the metric ``name``."""
    rank = np.arange(1, depth + 1)
    if name == "MRR":
        return 1 / rank
    kind, _, k = name.partition("@")
    if kind not in ("HR", "NDCG") or not k.isdecimal() or int(k) < 1:
        raise KeyError(f"unknown metric {name!r}; write 'HR@10', 'NDCG@10' (any K >= 1) or 'MRR'")
    worth = np.ones(depth) if kind == "HR" else 1 / np.log2(rank + 1)
    return np.where(rank <= int(k), worth, 0.0)


class Metrics(dict):
    """Metrics of one model on one part: a dict from name to mean over users.

    With g items scored strictly above the target and e others equal to it, every order of
    the ties is as likely as any other, so a metric is its mean over the ranks g + 1 .. g + e
    + 1. A model that scores all items alike is worth exactly what chance is worth.

    There is one target per user, so HR@K is also Recall@K, and the ideal DCG is 1:
    NDCG@K = 1 / log2(rank + 1) within the first K, else 0. MRR is not truncated.

    Both ways of treating items seen before come from the same pass over the scores:
    :attr:`filtered` and :attr:`unfiltered`.

    Attributes:
        above: (n,) int64, g: items scored strictly above the target.
        equal: (n,) int64, e: other items scored the same.
        filter_seen: whether items of the user's history were left out of the ranking.
    """

    def __init__(
        self,
        above: np.ndarray,
        equal: np.ndarray,
        ks: Sequence[int] = KS,
        *,
        seen_above: np.ndarray | int = 0,
        seen_equal: np.ndarray | int = 0,
        filter_seen: bool = False,
    ):
        counts = np.broadcast_arrays(above, equal, seen_above, seen_equal)
        self._counts = tuple(np.array(c, dtype=np.int64) for c in counts)
        above, equal, seen_above, seen_equal = self._counts
        self.ks = tuple(int(k) for k in ks)
        self.filter_seen = filter_seen
        self.above = above - seen_above if filter_seen else above
        self.equal = equal - seen_equal if filter_seen else equal
        if not len(self.above):
            raise ValueError("there is nobody to average over: the part, or the group, is empty")
        if self.above.min() < 0 or self.equal.min() < 0:
            raise ValueError("a count is negative: more seen items than items in all")
        names = [f"{kind}@{k}" for kind in ("HR", "NDCG") for k in self.ks] + ["MRR"]
        super().__init__({name: float(self.per_user(name).mean()) for name in names})

    @property
    def num_users(self) -> int:
        return len(self.above)

    @property
    def ranks(self) -> np.ndarray:
        """(n,) float64: the target's rank from 1, the middle one where it ties."""
        return self.above + 1 + self.equal / 2

    @property
    def filtered(self) -> Metrics:
        """The same scores, items of the user's history left out (never the target)."""
        return self._remade(self._counts, filter_seen=True)

    @property
    def unfiltered(self) -> Metrics:
        """The same scores, ranked over all items."""
        return self._remade(self._counts, filter_seen=False)

    def _remade(self, counts: Sequence[np.ndarray], filter_seen: bool) -> Metrics:
        above, equal, seen_above, seen_equal = counts
        return Metrics(
            above,
            equal,
            self.ks,
            seen_above=seen_above,
            seen_equal=seen_equal,
            filter_seen=filter_seen,
        )

    def per_user(self, name: str) -> np.ndarray:
        """(n,) float64: the metric ``name`` of each user, in the part's order; any K."""
        last = self.above + self.equal + 1
        total = np.concatenate([[0.0], np.cumsum(_gains(name, int(last.max())))])
        return (total[last] - total[self.above]) / (self.equal + 1)

    def ci(self, name: str, against: Metrics | None = None, **options) -> Interval:
        """A bootstrap interval over users for ``name``, or for its gain over ``against``.

        The two models are compared on the same users, pair by pair. Options as in
        :func:`bootstrap_ci`.
        """
        other = None if against is None else against.per_user(name)
        return bootstrap_ci(self.per_user(name), other, **options)

    def select(self, users: np.ndarray) -> Metrics:
        """The metrics of some users only: an index array or a mask over the part."""
        return self._remade([count[users] for count in self._counts], self.filter_seen)

    def by(self, groups: np.ndarray) -> dict[Hashable, Metrics]:
        """The metrics of each group, for example ``metrics.by(np.digitize(lengths, [10, 50]))``.

        Args:
            groups: (n,) a label per user. The result is sorted by label.
        """
        groups = np.asarray(groups)
        if groups.shape != self.above.shape:
            raise ValueError(f"{groups.shape} labels for {self.num_users} users: one each, please")
        labels = np.unique(groups)  # of Python's own kinds, where there is one
        return {
            label.item() if isinstance(label, np.generic) else label: self.select(groups == label)
            for label in labels
        }

    def __repr__(self) -> str:
        seen = "seen items filtered" if self.filter_seen else "all items ranked"
        lines = [
            f"Metrics of {self.num_users:,} users, {seen}",
            "K".ljust(5) + "".join(f"{k:>8}" for k in self.ks),
        ]
        for kind in ("HR", "NDCG"):
            lines.append(kind.ljust(5) + "".join(f"{self[f'{kind}@{k}']:8.4f}" for k in self.ks))
        return "\n".join([*lines, f"MRR  {self['MRR']:8.4f}"])
