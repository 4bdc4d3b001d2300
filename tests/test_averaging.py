"""Several data sets as one: against hand computation, scipy, and simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from seqrec_lib.study import average, gains


def table(logs, verdict="undecided"):
    found = pd.DataFrame({"dataset": [f"log {i}" for i in range(len(logs))], "low": 0.0})
    return found.assign(change=np.expm1(logs), verdict=verdict)


def test_three_data_sets_by_hand():
    # In hundredths: 1, 2 and 6. Mean 3; squares 4 + 1 + 9 = 14 over 2 are 7, for the mean 7 / 3,
    # for one more 7 + 7 / 3. Student's factor for two degrees of freedom is 4.303.
    found = average(table([0.01, 0.02, 0.06]))
    half, wide = 0.04303 * (7 / 3) ** 0.5, 0.04303 * (28 / 3) ** 0.5
    ends = [found.next_low, found.low, found.change, found.high, found.next_high]
    assert np.log1p(ends) == pytest.approx(
        [0.03 - wide, 0.03 - half, 0.03, 0.03 + half, 0.03 + wide], rel=1e-3
    )
    assert found.data_sets == 3 and found.p > 0.05
    assert str(found).startswith("+3.0%, 95% interval [-3.5%, +10.0%], over 3 data sets; one more:")


def test_the_mean_is_scipys_test_of_one_sample():
    logs = np.random.default_rng(0).normal(0.02, 0.03, 8)
    found, expected = average(table(logs), level=0.9), stats.ttest_1samp(logs, 0)
    interval = expected.confidence_interval(0.9)
    assert np.log1p([found.low, found.high]) == pytest.approx([interval.low, interval.high])
    assert found.p == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("between", [0.0, 0.01, 0.05])
def test_the_interval_holds_the_mean_whatever_the_errors_of_the_data_sets(between):
    # errors as in the records: of the surest and of the least sure a factor of ten apart
    rng, errors, held = np.random.default_rng(0), np.geomspace(0.003, 0.03, 8), []
    for _ in range(500):
        found = average(table(rng.normal(0.02, np.hypot(errors, between))))
        held.append(np.log1p(found.low) < 0.02 < np.log1p(found.high))
    assert 0.92 < np.mean(held) < 0.995


def test_one_more_of_the_same_kind_lies_in_the_range():
    rng, held = np.random.default_rng(0), []
    for _ in range(500):
        *known, new = rng.normal(0.02, 0.03, 9)
        found = average(table(known))
        held.append(np.log1p(found.next_low) < new < np.log1p(found.next_high))
    assert 0.92 < np.mean(held) < 0.98


def test_what_did_not_settle_or_has_no_interval_is_left_out():
    whole = table([0.01, 0.02, 0.06])
    more = pd.DataFrame({"dataset": ["x", "y"], "change": [-0.9, -0.5], "low": [-0.95, np.nan],
                         "verdict": ["does not settle", "too few seeds"]})  # fmt: skip
    assert average(pd.concat([whole, more])) == average(whole)


def test_two_data_sets_make_no_average():
    found = average(table([0.1, 0.2, 0.3], ["helps", "does not settle", "helps"]))
    assert found.data_sets == 2 and np.isnan([found.change, found.low, found.next_high]).all()


def test_bad_tables_are_refused_by_name():
    with pytest.raises(ValueError, match="log 0 stands there twice"):
        average(pd.concat([table([0.1, 0.2, 0.3]), table([0.1])]))
    with pytest.raises(ValueError):
        average(table([0.1, 0.2, 0.3]), level=95)


def test_records_are_averaged_over_their_data_sets():
    found = gains("positional", split="leave-one-out", model="sasrec", loss="ce")
    assert average(found).data_sets == found["low"].notna().sum() > 8
