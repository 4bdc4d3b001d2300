"""What several data sets say together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from ..evaluation.intervals import checked_level

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Average", "average"]


@dataclass(frozen=True)
class Average:
    """A relative change, averaged over data sets, and what one more of them may show.

    Attributes:
        change, low, high: of the mean ratio (geometric) less 1, and its interval.
        p: of "the mean ratio is 1".
        next_low, next_high: where the change that is *measured* on one more data set is expected.
        level: of both intervals.
        data_sets: how many there are.
    """

    change: float
    low: float
    high: float
    p: float
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


def average(table: pd.DataFrame, *, level: float = 0.95) -> Average:
    """The mean change over data sets, and the range of one more, by Student's t of log ratios.

    Each data set counts once, however surely its change is known. So whatever makes the changes
    differ, seeds, users or the data themselves, is in the interval, and it is not too narrow where
    the errors differ much (Ibragimov and Mueller 2010), as one with
    weights of estimated errors can be. The range of one more takes the data sets as alike in this.

    They are taken as independent. Data sets of one family are not.

    Args:
        table: rows of :func:`gains`, one a data set. Rows without an interval, and those that did
            not settle, are left out; where fewer than three are left, all numbers are NaN.

    Raises:
        ValueError: a data set stands there twice.
    """
    checked_level(level)
    twice = table["dataset"][table["dataset"].duplicated()]
    if len(twice):
        raise ValueError(f"{twice.iloc[0]} stands there twice: choose one row for each data set")
    kept = table[table["low"].notna() & (table["verdict"] != "does not settle")]
    if (n := len(kept)) < 3:
        return Average(*[math.nan] * 6, level, n)
    logs = np.log1p(kept["change"].to_numpy(float))
    mean, spread = logs.mean(), logs.std(ddof=1)
    error, factor = spread / math.sqrt(n), stats.t.ppf((1 + level) / 2, n - 1)
    change, low, high, next_low, next_high = (
        math.expm1(mean + factor * x)
        for x in (0, -error, error, -math.hypot(spread, error), math.hypot(spread, error))
    )
    p = float(stats.ttest_1samp(logs, 0).pvalue)
    return Average(change, low, high, p, next_low, next_high, level, n)
