"""Many data sets as one: against hand computation, another library, and simulation."""

import numpy as np
import pandas as pd
import pytest

from seqrec_lib.study import gains, pooled
from seqrec_lib.study.comparison import relative_difference


def table(logs, errors, verdict="undecided"):
    names = [f"log {i}" for i in range(len(logs))]
    found = pd.DataFrame({"dataset": names, "change": np.expm1(logs), "error": errors})
    return found.assign(verdict=verdict)


def test_three_data_sets_by_hand():
    # In hundredths: 1, 2 and 6, errors of 1. Mean 3; squares 4 + 1 + 9 = 14 over 2 are 7 where the
    # errors alone make 1, so 6 are between; the mean's variance is 7 / 3. Student: 4.303, 12.706.
    found = pooled(table([0.01, 0.02, 0.06], 0.01))
    assert np.log1p(found.change) == pytest.approx(0.03)
    assert found.between == pytest.approx(0.01 * 6**0.5)
    assert np.log1p(found.high) == pytest.approx(0.03 + 0.04303 * (7 / 3) ** 0.5, rel=1e-3)
    wide = 0.12706 * (7 / 3 + 6) ** 0.5
    assert np.log1p([found.next_low, found.next_high]) == pytest.approx(
        [0.03 - wide, 0.03 + wide], rel=1e-3
    )
    assert found.data_sets == 3 and found.low < 0 < found.high and found.p > 0.05
    assert str(found).startswith("+3.0%, 95% interval [-3.5%, +10.0%], over 3 data sets; one more:")


def test_the_trials_of_a_vaccine_as_statsmodels_has_them():
    # Thirteen trials of BCG (Colditz et al. 1994): ill and well, of the vaccinated and the others.
    # Expected: combine_effects(.., method_re="iterated", use_t=True) of statsmodels 0.15.0.
    ill = np.array([4, 6, 3, 62, 33, 180, 8, 505, 29, 17, 186, 5, 27])
    well = np.array([119, 300, 228, 13536, 5036, 1361, 2537, 87886, 7470, 1699, 50448, 2493, 16886])
    ill_too = np.array([11, 29, 11, 248, 47, 372, 10, 499, 45, 65, 141, 3, 29])
    well_too = np.array(
        [128, 274, 209, 12619, 5761, 1079, 619, 87892, 7232, 1600, 27197, 2338, 17825]
    )
    n, m = ill + well, ill_too + well_too
    found = pooled(
        table(np.log(ill / n * m / ill_too), np.sqrt(1 / ill - 1 / n + 1 / ill_too - 1 / m))
    )
    assert found.between**2 == pytest.approx(0.3180684522, rel=1e-8)
    assert np.log1p(found.change) == pytest.approx(-0.7149681535, rel=1e-8)
    assert np.log1p([found.low, found.high]) == pytest.approx([-1.10909838, -0.32083793], rel=1e-7)


def test_data_sets_that_agree_too_well_are_not_believed_beyond_their_errors():
    errors = np.array([0.01, 0.02, 0.02])
    found = pooled(table([0.02, 0.02, 0.02], errors))
    assert found.between == 0
    half = np.log1p(found.high) - np.log1p(found.change)
    assert half == pytest.approx(4.30265 * (errors**-2.0).sum() ** -0.5, rel=1e-4)


@pytest.mark.parametrize("between", [0.0, 0.03])
def test_how_often_both_intervals_hold_the_truth(between):
    rng, held, held_next = np.random.default_rng(0), [], []
    for _ in range(250):
        true = rng.normal(0.02, between, 9)
        scatter = rng.uniform(0.005, 0.06, 9)
        changes = [
            relative_difference(*(m + s * rng.normal(size=5) for m in (np.exp(t), 1.0)))
            for t, s in zip(true[:8], scatter, strict=False)
        ]
        found = pooled(table(np.log1p([c.change for c in changes]), [c.error for c in changes]))
        held.append(np.log1p(found.low) < 0.02 < np.log1p(found.high))
        held_next.append(np.log1p(found.next_low) <= true[8] <= np.log1p(found.next_high))
    assert np.mean(held) > 0.88
    assert np.mean(held_next) > (0.92 if between == 0 else 0.83)  # the docstring says why
    assert np.mean(held) < 1 or between == 0  # an interval that always holds it says nothing


def test_what_did_not_settle_or_has_no_interval_is_left_out():
    whole = table([0.01, 0.02, 0.06], 0.01)
    more = pd.DataFrame({"dataset": ["x", "y"], "change": [-0.9, -0.5], "error": [0.01, np.nan],
                         "verdict": ["does not settle", "too few seeds"]})  # fmt: skip
    assert pooled(pd.concat([whole, more])) == pooled(whole)


def test_bad_tables_are_refused_by_name():
    with pytest.raises(ValueError, match="log 0 stands there twice"):
        pooled(pd.concat([table([0.1, 0.2, 0.3], 0.1), table([0.1], 0.1)]))
    with pytest.raises(ValueError, match="only 2 of 2 data sets have an interval; it takes three"):
        pooled(table([0.1, 0.2], 0.1))
    with pytest.raises(ValueError):
        pooled(table([0.1, 0.2, 0.3], 0.1), level=95)


def test_a_higher_level_is_a_wider_interval_about_the_same_mean():
    found = gains("positional", split="leave-one-out", model="sasrec", loss="ce")
    narrow, wide = pooled(found, level=0.9), pooled(found)
    assert narrow.change == wide.change and narrow.data_sets == found["error"].notna().sum()
    assert wide.low < narrow.low < narrow.high < wide.high
    assert narrow.next_low < narrow.low and narrow.high < narrow.next_high
