"""How large is a difference, how sure are we, and is it small enough to ignore?

For a handful of seeds: the measures here assume normal values, which five numbers cannot
contradict. For thousands of users use :func:`~seqrec_lib.evaluation.bootstrap_ci`.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from ..evaluation.intervals import checked_level

__all__ = [
    "Difference",
    "EffectSize",
    "Equivalence",
    "equivalence",
    "hedges_g",
    "paired_difference",
]


@dataclass(frozen=True)
class EffectSize:
    """Hedges' g and the interval of the standardised difference it estimates."""

    g: float
    low: float
    high: float
    level: float

    def __str__(self) -> str:
        return f"g = {self.g:.2f}, {self.level:.0%} interval [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Difference:
    """A mean difference of pairs, its t interval, and the p-value of "there is none"."""

    mean: float
    low: float
    high: float
    level: float
    p: float
    pairs: int

    def __str__(self) -> str:
        return (
            f"{self.mean:+.4f}, {self.level:.0%} interval [{self.low:+.4f}, {self.high:+.4f}], "
            f"p = {self.p:.3g}, {self.pairs} pairs"
        )


@dataclass(frozen=True)
class Equivalence:
    """The outcome of two one-sided tests.

    Attributes:
        difference: mean(a) - mean(b).
        low, high: the 1 - 2 alpha interval of the difference: within the margin exactly
            when the test declares equivalence.
        margin: the smallest difference that would matter, in the units of a and b.
        p_lower, p_upper: of the tests against -margin and against +margin.
    """

    difference: float
    low: float
    high: float
    margin: float
    p_lower: float
    p_upper: float
    alpha: float

    @property
    def p(self) -> float:
        """The larger of the two: both must reject."""
        return max(self.p_lower, self.p_upper)

    @property
    def equivalent(self) -> bool:
        return self.p < self.alpha

    @property
    def verdict(self) -> str:
        """ "equivalent", "different" (beyond the margin, the whole interval) or "undecided"."""
        if self.equivalent:
            return "equivalent"
        beyond = self.low > self.margin or self.high < -self.margin
        return "different" if beyond else "undecided"

    def __str__(self) -> str:
        return (
            f"{self.verdict}: difference {self.difference:+.4f}, {1 - 2 * self.alpha:.0%} interval "
            f"[{self.low:+.4f}, {self.high:+.4f}], margin {self.margin:.4f}, p = {self.p:.3g}"
        )


def hedges_g(a, b, *, paired: bool = False, level: float = 0.95) -> EffectSize:
    """Hedges' g of ``a`` over ``b``: how many standard deviations apart; positive: a is larger.

    Independent samples: d = (mean(a) - mean(b)) / s, s the pooled standard deviation. Pairs:
    d = mean(a - b) / sd(a - b), which is larger the closer the pairs agree and must not be
    compared with the independent form (it is d_z in Lakens 2013).

    g = J d, with the exact J = Gamma(f/2) / (sqrt(f/2) Gamma((f - 1)/2)), f the degrees of
    freedom, is unbiased for the true standardised difference (Hedges 1981). With one degree of
    freedom, that of two pairs, there is no unbiased estimate, and g is NaN. The interval is
    exact for that true value: it holds the noncentralities whose noncentral t would give the
    observed t neither too rarely above nor below (Steiger & Fouladi 1997). J plays no part
    in it. Five seeds against five give an interval 2.5 wide where g is 0, wider elsewhere.

    Args:
        a, b: (n,), (m,) one value per seed (or per user).
        paired: a[i] and b[i] belong together (same seed, or same user).
        level: of the interval.

    Raises:
        ValueError: fewer than two values, values that are not finite, pairs of unequal
            number, no spread at all, or a level that is no share.
    """
    checked_level(level)
    a, b = checked_samples(a, b, paired)
    if paired:
        x = a - b
        freedom, scale = len(x) - 1, 1 / math.sqrt(len(x))
        difference, sd = x.mean(), x.std(ddof=1)
    else:
        freedom, scale = len(a) + len(b) - 2, math.sqrt(1 / len(a) + 1 / len(b))
        squares = ((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()
        difference, sd = a.mean() - b.mean(), math.sqrt(squares / freedom)
    d = difference / sd
    log_j = special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)
    j = math.exp(log_j - math.log(freedom / 2) / 2) if freedom > 1 else math.nan
    low, high = (scale * x for x in _noncentralities(d / scale, freedom, level))
    return EffectSize(float(j * d), low, high, level)


def _noncentralities(t: float, freedom: int, level: float) -> tuple[float, float]:
    """The noncentralities under which ``t`` sits at the upper and at the lower tail."""
    sd = math.sqrt(1 + t * t / (2 * freedom))

    def solve(probability: float, step: float) -> float:
        excess = lambda shift: _noncentral_cdf(t, freedom, shift) - probability  # noqa: E731
        start, end = t - step, t + step
        while excess(start) * excess(end) > 0:
            end += step
        return float(optimize.brentq(excess, start, end))

    return solve((1 + level) / 2, -sd), solve((1 - level) / 2, sd)


def _noncentral_cdf(t: float, freedom: int, shift: float) -> float:
    """P(T <= t) of T = (Z + shift) / V, the noncentral t.

    SciPy's is NaN where Z is too small to count, far out or beside a large shift; then T is
    shift / V, with V^2 a chi-squared divided by its degrees of freedom.
    """
    found = stats.nct.cdf(t, freedom, shift)
    if np.isnan(found):
        beyond = stats.chi2.sf(freedom * max(shift / t, 0) ** 2, freedom)  # P(V >= shift / t)
        found = beyond if t > 0 else 1 - beyond
    return found


def paired_difference(a, b, *, level: float = 0.95) -> Difference:
    """The mean of ``a - b`` over pairs (same seed, or same user), with Student's t interval.

    Raises:
        ValueError: as :func:`hedges_g`.
    """
    checked_level(level)
    a, b = checked_samples(a, b, paired=True)
    test = stats.ttest_rel(a, b)
    low, high = test.confidence_interval(level)
    return Difference(
        float((a - b).mean()), float(low), float(high), level, float(test.pvalue), len(a)
    )


def equivalence(
    a,
    b,
    margin: float,
    *,
    paired: bool = False,
    relative: bool = False,
    alpha: float = 0.05,
) -> Equivalence:
    """Two one-sided t tests: is the difference of ``a`` and ``b`` too small to matter?

    "Not significantly different" may only mean too few seeds. Here the burden is turned
    round: equivalence is declared when both "a - b <= -margin" and "a - b >= margin" are
    rejected at ``alpha`` (Schuirmann 1987; Lakens 2017), Welch's test for independent
    samples (unequal variances), Student's for pairs.

    Args:
        a, b: (n,), (m,) one value per seed (or per user).
        margin: the smallest difference that would matter; choose it before looking.
        paired: a[i] and b[i] belong together.
        relative: ``margin`` is a fraction of mean(a), the reference, which is then taken as
            known: 0.05 is five per cent of it.
        alpha: the level of each test, and of the two together.

    Raises:
        ValueError: as :func:`hedges_g`, or a margin that is not positive, or an alpha that no
            test has.
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 0.5, such as 0.05; got {alpha}")
    a, b = checked_samples(a, b, paired)
    margin = float(margin * abs(a.mean()) if relative else margin)
    if not margin > 0:
        raise ValueError(f"the margin must be positive, got {margin}")

    def test(shift: float, alternative: str):
        if paired:
            return stats.ttest_rel(a + shift, b, alternative=alternative)
        with warnings.catch_warnings():  # one group may be constant: the other's spread counts
            warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
            return stats.ttest_ind(a + shift, b, equal_var=False, alternative=alternative)

    low, high = test(0, "two-sided").confidence_interval(1 - 2 * alpha)
    return Equivalence(
        difference=float(a.mean() - b.mean()),
        low=float(low),
        high=float(high),
        margin=margin,
        p_lower=float(test(margin, "greater").pvalue),
        p_upper=float(test(-margin, "less").pvalue),
        alpha=alpha,
    )


def checked_samples(a, b, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    for name, x in (("a", a), ("b", b)):
        if x.ndim != 1 or len(x) < 2:
            raise ValueError(f"{name} needs two values or more in one dimension, got {x.shape}")
        if not np.isfinite(x).all():
            raise ValueError(f"{name} holds {(~np.isfinite(x)).sum()} values that are not finite")
    if paired and len(a) != len(b):
        raise ValueError(f"pairs need equal numbers; a has {len(a)} values, b has {len(b)}")
    if np.ptp(a - b) == 0 if paired else np.ptp(a) == np.ptp(b) == 0:
        raise ValueError(
            "the values do not vary at all, so there is nothing to measure the difference by; "
            "were they copied, or rounded?"
        )
    return a, b
