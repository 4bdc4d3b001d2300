"""What several data sets say together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize, stats

from ..evaluation.intervals import checked_level

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Pooled", "pooled"]


@dataclass(frozen=True)
class Pooled:
    """A relative change over data sets: its mean, and what one more of them may show.

    Attributes:
        change, low, high: of the mean ratio (geometric) less 1, and its interval.
        p: of "the mean ratio is 1".
        between: the standard deviation between data sets of the logarithm of the *true* ratio;
            0 where the scatter over seeds explains how they differ.
        next_low, next_high: where the true change of one more data set is expected.
        level: of both intervals.
        data_sets: how many there are.
    """

    change: float
    low: float
    high: float
    p: float
    between: float
    next_low: float
    next_high: float
    level: float
    data_sets: int

    def __str__(self) -> str:
        return (
            f"{self.change:+.1%}, {self.level:.0%} interval [{self.low:+.1%}, {self.high:+.1%}], "
            f"over {self.data_sets} data sets; one more: [{self.next_low:+.1%}, "
            f"{self.next_high:+.1%}]"
        )


def pooled(table: pd.DataFrame, *, level: float = 0.95) -> Pooled:
    """The mean change over data sets, each of which has a true change of its own.

    Random effects, in logarithms of ratios: a data set weighs 1 / (e^2 + tau^2), where e is its
    standard error over seeds and tau the standard deviation of the true changes, by Paule and
    Mandel (1982). The interval of the mean is that of Hartung and Knapp (2001), never narrower
    than the weights alone would have it (Roever et al. 2015); the one for the next data set that
    of Higgins et al. (2009), which is too narrow where data sets are few: with eight of five seeds
    that differ as much as their seeds scatter, it holds the next one about nine times in ten.

    The data sets are taken as a sample of many, and as independent. Logs of one family are not.

    Args:
        table: rows of :func:`gains`, one a data set. Rows without an interval, and those that did
            not settle, are left out.

    Raises:
        ValueError: a data set stands there twice, or fewer than three are left.
    """
    checked_level(level)
    twice = table["dataset"][table["dataset"].duplicated()]
    if len(twice):
        raise ValueError(f"{twice.iloc[0]} stands there twice: choose one row for each data set")
    rows = table[table["error"].notna() & (table["verdict"] != "does not settle")]
    if (n := len(rows)) < 3:
        raise ValueError(f"only {n} of {len(table)} data sets have an interval; it takes three")
    logs, squares = np.log1p(rows["change"].to_numpy(float)), rows["error"].to_numpy(float) ** 2

    def weighed(between: float) -> tuple[np.ndarray, float, float]:
        """At this variance between data sets: weights, mean, and sum of weighted squares."""
        weights = 1 / (squares + between)
        mean = np.average(logs, weights=weights)
        return weights, mean, (weights * (logs - mean) ** 2).sum()

    def excess(between: float) -> float:
        return weighed(between)[2] - (n - 1)

    between = 0.0
    if excess(0.0) > 0:  # it falls, and is negative where this is the variance of all
        between = optimize.brentq(excess, 0.0, logs.var(ddof=1))
    weights, mean, scatter = weighed(between)
    error = math.sqrt(max(1.0, scatter / (n - 1)) / weights.sum())
    half = stats.t.ppf((1 + level) / 2, n - 1) * error
    wide = stats.t.ppf((1 + level) / 2, n - 2) * math.hypot(error, math.sqrt(between))
    change, low, high, next_low, next_high = (
        math.expm1(mean + x) for x in (0, -half, half, -wide, wide)
    )
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return Pooled(change, low, high, p, math.sqrt(between), next_low, next_high, level, n)
