"""How far a mean over users could move had other users been drawn."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = ["Interval", "bootstrap_ci"]

# Above this many values BCa costs more than it corrects: its jackknife is quadratic in
# them, and its distance from the percentile interval shrinks as one over their number.
_BCA_UP_TO = 2_000
_CELLS = 2**22  # resampled values held at once (32 MiB of float64, and as much of indices)


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval around it. Unpacks as ``low, high = interval``."""

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def __iter__(self):
        return iter((self.low, self.high))

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.estimate:.4f} [{self.low:.4f}, {self.high:.4f}]"


def checked_level(level: float) -> None:
    """Raise ValueError unless it is a share: 95 for 95 % would give nonsense or search for ever."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, such as 0.95; got {level}")


def bootstrap_ci(
    x: np.ndarray,
    y: np.ndarray | None = None,
    *,
    level: float = 0.95,
    statistic: Callable = np.mean,
    resamples: int = 2_000,
    method: str | None = None,
    seed: int = 0,
) -> Interval:
    """A bootstrap interval for the mean of ``x``, or of the paired difference ``x - y``.

    The values must be draws that could have been others: users, not the handful of seeds of
    a study (five values cannot stand for all others; use
    :func:`~seqrec_lib.analysis.effects.paired_difference`, which assumes normality).

    Args:
        x: (n,) one value per user.
        y: (n,) the same users under another model; pairs are resampled together.
        level: confidence, between 0 and 1.
        statistic: a function of (values, axis); the mean unless given.
        resamples: how often to draw n users with replacement.
        method: "BCa", "percentile" or "basic" (Efron & Tibshirani 1993, chapters 12 to 14);
            by default BCa up to 2,000 values and percentile above.
        seed: makes the interval reproducible.

    Raises:
        ValueError: fewer than two values, one that is not finite, unequal lengths, or a level
            that is no share.
    """
    checked_level(level)
    x = np.asarray(x, dtype=np.float64)
    if y is not None:
        y = np.asarray(y, dtype=np.float64)
        if x.shape != y.shape:
            raise ValueError(f"pairs need equal shapes; x has {x.shape}, y has {y.shape}")
        x = x - y
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"a bootstrap needs two values or more in one dimension, got {x.shape}")
    if np.isnan(x).any():
        raise ValueError(f"x holds {np.isnan(x).sum()} NaN of {len(x)} values; drop or repair them")
    if np.isinf(x).any():
        raise ValueError(
            f"{np.isinf(x).sum()} of {len(x)} values are infinite; drop or repair them"
        )
    estimate = float(statistic(x, axis=0))
    if np.ptp(x) == 0:  # every resample is the same: SciPy's BCa would divide 0 by 0
        return Interval(estimate, estimate, estimate, level)

    def draw(method: str):
        return stats.bootstrap(
            (x,),
            statistic,
            n_resamples=resamples,
            batch=max(1, _CELLS // len(x)),
            confidence_level=level,
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval

    if method is not None or len(x) > _BCA_UP_TO:
        found = draw(method or "percentile")
    else:
        with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = draw("BCa")
        if np.isnan(found.low):  # BCa fails for a median, say, that no single value moves
            found = draw("percentile")
    return Interval(estimate, float(found.low), float(found.high), level)
