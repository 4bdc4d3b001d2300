"""Effect sizes against published worked examples and against simulation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from seqrec_lib.analysis.effects import equivalence, hedges_g, paired_difference

# Hours of sleep gained under two drugs by the same ten patients (Student 1908, Biometrika 6).
SLEEP = (
    np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]),
    np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]),
)


def sample(n, mean, sd, seed=0):
    """n values with exactly this mean and standard deviation."""
    x = np.random.default_rng(seed).normal(size=n)
    return mean + sd * (x - x.mean()) / x.std(ddof=1)


def test_g_of_borenstein_et_al():
    """Introduction to Meta-Analysis (2009), chapter 4: d = 0.5970, J = 0.9923, g = 0.5924.

    Their approximate interval, g +- 1.96 x 0.2028, agrees with the exact one to its own error.
    """
    effect = hedges_g(sample(50, 103, 5.5), sample(50, 100, 4.5, seed=1))
    assert effect.g == pytest.approx(0.5924, abs=1e-4)
    assert effect.low == pytest.approx(0.5924 - 1.96 * 0.2028, abs=0.01)
    assert effect.high == pytest.approx(0.5924 + 1.96 * 0.2028, abs=0.01)
    assert str(effect) == "g = 0.59, 95% interval [0.19, 1.00]"


def test_interval_of_the_r_package_mbess():
    """ci.smd(smd = 0.3062566, n.1 = 50, n.2 = 26) prints -0.1712149 and 0.7816834."""
    effect = hedges_g(sample(50, 0.3062566, 1), sample(26, 0, 1, seed=1))
    assert (effect.low, effect.high) == pytest.approx((-0.1712149, 0.7816834), abs=1e-6)


def test_five_seeds_say_little():
    """At t = 0 the noncentral t is below 0 as often as a normal is: 1.96 sqrt(2 / 5)."""
    effect = hedges_g(sample(5, 0.1, 0.01), sample(5, 0.1, 0.01, seed=1))
    assert effect.g == pytest.approx(0, abs=1e-9)
    limit = stats.norm.ppf(0.975) * math.sqrt(2 / 5)
    assert (effect.low, effect.high) == pytest.approx((-limit, limit), abs=1e-6)


@pytest.mark.parametrize("paired", [False, True])
def test_g_is_unbiased_and_its_interval_holds_the_truth(paired):
    """Five against five, 1,000 times; without J the mean would be a tenth too large."""
    rng, truth = np.random.default_rng(0), 1.2
    found = []
    for _ in range(1000):
        if paired:  # a shared part leaves sd(a - b) = 1
            shared = rng.normal(0, 5, 5)
            a, b = shared + rng.normal(truth, 1, 5), shared
        else:
            a, b = rng.normal(truth, 1, 5), rng.normal(0, 1, 5)
        found.append(hedges_g(a, b, paired=paired))
    spread = np.std([e.g for e in found]) / math.sqrt(len(found))
    assert np.mean([e.g for e in found]) == pytest.approx(truth, abs=3 * spread)
    held = np.mean([e.low <= truth <= e.high for e in found])
    assert held == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / len(found)))


def test_g_turns_round_and_does_not_depend_on_units():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.5, 1, 6), rng.normal(0, 2, 9)
    effect, other, scaled = hedges_g(a, b), hedges_g(b, a), hedges_g(100 * a + 7, 100 * b + 7)
    assert (effect.g, effect.low) == pytest.approx((-other.g, -other.high))
    assert (effect.g, effect.high) == pytest.approx((scaled.g, scaled.high))


@pytest.mark.parametrize("size, shift", [(3, 50.0), (5, 20.0), (20_000, 0.02), (20_000, 2.0)])
def test_g_of_extreme_samples(size, shift):
    effect = hedges_g(sample(size, shift, 1), sample(size, 0, 1, seed=1))
    assert effect.low < effect.g < effect.high
    if size > 100:  # where the large-sample formula holds
        se = math.sqrt(2 / size + shift**2 / (4 * size))
        assert (effect.low, effect.high) == pytest.approx(
            (shift - 1.96 * se, shift + 1.96 * se), abs=0.02 * se
        )


def test_paired_difference_of_student():
    """R's help of t.test: t = -4.0621, p = 0.002833, interval -2.4598858 to -0.7001142."""
    found = paired_difference(*SLEEP)
    assert found.mean == pytest.approx(-1.58)
    assert (found.low, found.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-7)
    assert found.p == pytest.approx(0.002833, abs=1e-6)
    assert "10 pairs" in str(found)


def test_equivalence_of_lakens():
    """Lakens 2017 (doi 10.1177/1948550617697177), the replication of Moery & Calin-Jageman.

    n = 95 and 89, means 5.25 and 5.22, standard deviations 0.95 and 0.83, bounds of 0.384
    (Welch): t(182) = -2.69, p = .004.
    """
    a, b = sample(95, 5.25, 0.95), sample(89, 5.22, 0.83, seed=1)
    found = equivalence(a, b, 0.384)
    assert found.p == found.p_upper == pytest.approx(stats.t.cdf(-2.69, 182), abs=1e-4)
    assert round(found.p, 3) == 0.004
    assert found.equivalent and found.verdict == "equivalent"
    # The same margin, as a part of the mean of a.
    same = equivalence(a, b, 0.384 / 5.25, relative=True)
    assert (same.margin, same.p) == pytest.approx((found.margin, found.p))


def test_paired_equivalence_by_hand():
    """Mara & Cribbie 2012: t = (mean + margin) / (sd / sqrt(n)), and the same with minus."""
    a, b = SLEEP
    found = equivalence(a, b, 3, paired=True)
    se = (a - b).std(ddof=1) / math.sqrt(10)
    assert found.p_lower == pytest.approx(stats.t.sf((-1.58 + 3) / se, 9))
    assert found.p_upper == pytest.approx(stats.t.cdf((-1.58 - 3) / se, 9))
    assert found.equivalent
    assert equivalence(a, b, 0.5, paired=True).verdict == "different"
    assert equivalence(a, b, 1.5, paired=True).verdict == "undecided"


def test_equivalence_is_the_interval_within_the_margin():
    rng = np.random.default_rng(5)
    outcomes = set()
    for _ in range(200):
        a, b = rng.normal(0, 1, 8), rng.normal(0, 2, 6)
        found = equivalence(a, b, 1.5)
        inside = -found.margin < found.low and found.high < found.margin
        assert found.equivalent == inside
        outcomes.add(found.equivalent)
    assert outcomes == {True, False}


@pytest.mark.parametrize("paired", [False, True])
def test_equivalence_is_seldom_declared_at_the_margin(paired):
    """A true difference just at the margin: wrong in alpha of all cases, no more."""
    rng = np.random.default_rng(6)
    wrong = [
        equivalence(rng.normal(1, 0.2, 5), rng.normal(0, 0.2, 5), 1, paired=paired).equivalent
        for _ in range(1000)
    ]
    assert 0.02 < np.mean(wrong) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_what_cannot_be_measured_is_refused():
    for measure in (hedges_g, lambda a, b: equivalence(a, b, 1)):
        with pytest.raises(ValueError, match="a needs two values"):
            measure([1], [1, 2])
        with pytest.raises(ValueError, match="b holds 1 values that are not finite"):
            measure([1, 2], [1, np.nan])
        with pytest.raises(ValueError, match="do not vary"):
            measure([1, 1], [2, 2])
    with pytest.raises(ValueError, match="a has 2 values, b has 3"):
        paired_difference([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="do not vary"):
        paired_difference([1, 2], [2, 3])
    with pytest.raises(ValueError, match="margin must be positive"):
        equivalence([1, 2], [1, 3], 0)
    for level in (95, 1, 0, -1, math.nan):
        with pytest.raises(ValueError, match="level must lie between 0 and 1, such as 0.95"):
            hedges_g([1, 2, 3], [0, 0.5, 1], level=level)


@pytest.mark.parametrize("spread", [1e-4, 1e-6, 1e-9, 1e-15])
def test_the_interval_of_a_huge_effect_is_that_of_its_spread(spread):
    """Beside it the means' own scatter is nothing; the pooled sd has a chi-squared's interval."""
    a, b = 0.9 + spread * np.arange(5), 0.4 + spread * np.array([1, 0, 2, 4, 3])
    effect, other = hedges_g(a, b), hedges_g(b, a)
    d = (a.mean() - b.mean()) / math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    ends = d * np.sqrt(stats.chi2.ppf([0.025, 0.975], 8) / 8)
    assert (effect.low, effect.high) == pytest.approx(tuple(ends), rel=1e-6)
    assert (other.low, other.high) == pytest.approx((-effect.high, -effect.low))


def test_two_pairs_of_a_large_effect_have_an_interval():
    effect = hedges_g([1.0, 1.08], [0.0, 0.0], paired=True)  # t = 26, with one degree of freedom
    assert 0 < effect.low < effect.high < np.inf


def test_two_pairs_have_no_unbiased_effect_but_an_interval():
    effect = hedges_g([1, 2], [0, 0.5], paired=True)  # J = Gamma(1/2) / (.. Gamma(0)) = 0
    assert np.isnan(effect.g) and effect.low < 0 < effect.high


def test_one_constant_group_is_judged_by_the_other_and_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = equivalence([0.5, 0.5], [0.4, 0.6], margin=0.05)
    assert found.verdict == "undecided" and found.low < found.difference < found.high


@pytest.mark.parametrize("alpha", [0, 0.5, 0.95, 5])
def test_an_alpha_that_no_test_has_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha must lie between 0 and 0.5.*got {alpha}"):
        equivalence([1, 2, 3], [1, 2, 4], 0.1, alpha=alpha)
