"""Gains: the measure against hand computation and simulation, the tables against their records."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import seqrec_lib as sr
from seqrec_lib import plotting
from seqrec_lib.study import comparison as module
from seqrec_lib.study.comparison import (
    chosen,
    detectable,
    epochs_to,
    gains,
    holm,
    largest_rise,
    paired,
    published_gains,
    relative_difference,
)
from seqrec_lib.study.grid import Run, load_grid, select
from seqrec_lib.study.records import SCHEMA, Store, results
from seqrec_lib.study.tables import visible_lengths
from study_helpers import runs_of

# ---- the measure -------------------------------------------------------------------------------


def test_a_relative_difference_by_hand():
    found = relative_difference([20, 21, 22, 23, 24], [19, 20, 20, 20, 21])
    # means 22 and 20; variances of the means 2.5/5 and .5/5, as shares of the squared means
    variance, freedom = 0.5 / 484 + 0.1 / 400, 5.83
    half = stats.t.ppf(0.975, freedom) * variance**0.5
    assert found.change == pytest.approx(0.1)
    assert found.low == pytest.approx(1.1 * np.exp(-half) - 1, abs=1e-4)
    assert found.high == pytest.approx(1.1 * np.exp(half) - 1, abs=1e-4)
    assert str(found).startswith("+10.0%, 95% interval [+0.7%, +20.2%], p = 0.039")


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    new, reference = rng.normal(1.1, 0.06, (1500, 5)), rng.normal(1, 0.03, (1500, 5))
    found = [relative_difference(x, y) for x, y in zip(new, reference, strict=True)]
    held = np.mean([f.low < 0.1 < f.high for f in found])
    assert 0.935 < held < 0.975
    same = [relative_difference(x - 0.1, y) for x, y in zip(new, reference, strict=True)]
    assert 0.025 < np.mean([f.p < 0.05 for f in same]) < 0.065


def test_units_do_not_matter_and_sides_turn_round():
    a, b = np.array([3.0, 4, 5, 4]), np.array([2.0, 2.5, 3, 2])
    one, other, percent = (relative_difference(*p) for p in ((a, b), (b, a), (100 * a, 100 * b)))
    assert (1 + one.change) * (1 + other.change) == pytest.approx(1)
    assert (1 + one.low) * (1 + other.high) == pytest.approx(1)
    assert (percent.change, percent.low, percent.p) == pytest.approx((one.change, one.low, one.p))
    assert (one.low > 0) == (one.p < 0.05)


@pytest.mark.parametrize("bad", [([1.0], [1.0, 2.0]), ([1.0, 1.0], [2.0, 2.0]), ([-1, 1], [1, 2])])
def test_what_has_no_ratio_is_refused(bad):
    with pytest.raises(ValueError):
        relative_difference(*bad)


def test_holm_by_hand():
    # .01 * 4, .02 * 3, .025 * 2 (raised to the one before), .5; a missing test is no test
    found = holm([0.025, 0.01, np.nan, 0.5, 0.02])
    assert found[[0, 1, 3, 4]] == pytest.approx([0.06, 0.04, 0.5, 0.06]) and np.isnan(found[2])
    assert holm([0.9, 0.8]).max() == 1 and len(holm([])) == 0


def test_the_detectable_difference_is_found_as_often_as_it_says():
    assert detectable(1, 5) == pytest.approx(2.0245, abs=2e-3)  # G*Power: d = 2.02 for 5 and 5
    assert detectable(1, 17) == pytest.approx(0.99, abs=0.02)  # Cohen 1988: d = 1 takes 17 and 17
    with pytest.raises(ValueError, match="two seeds or more, got 1"):
        detectable(0.02, 1)
    size = detectable(0.03, 6, power=0.6)
    rng = np.random.default_rng(1)
    a, b = rng.normal(1 + size, 0.03, (4000, 6)), rng.normal(1, 0.03, (4000, 6))
    found = stats.ttest_ind(a, b, axis=1)
    assert np.mean((found.pvalue < 0.05) & (found.statistic > 0)) == pytest.approx(0.6, abs=0.03)


def test_published_gains_keep_their_values():
    found = published_gains().set_index("dataset")["change"]
    assert found.to_dict() == {"beauty": 0.0722, "ml-1m": 0.0981, "anime": 0.0231}


# ---- tables ------------------------------------------------------------------------------------

SEEDS = [0, 1, 2, 3]
GRID = {
    "seeds": SEEDS,
    "config": {"max_len": 20, "dim": 8},
    "runs": [
        {"datasets": ["world-markov", "world-taste"], "attentions": ["softmax", "awrsr-additive"]},
        {"datasets": ["world-markov"], "attentions": ["awrsr-additive"], "variant": "on-weights",
         "weighting": {"reading": "weights"}},
        {"datasets": ["world-markov"], "attentions": ["softmax", "awrsr-additive"],
         "variant": "dropout-0.1", "dropout": 0.1},
    ],
}  # fmt: skip
SOFTMAX = [0.50, 0.51, 0.49, 0.50]
MARKOV = {
    ("softmax", "main"): SOFTMAX,
    ("awrsr-additive", "main"): [0.60, 0.62, 0.61, 0.63],
    ("awrsr-additive", "on-weights"): [0.501, 0.511, 0.489, 0.502],
    ("softmax", "dropout-0.1"): [0.30, 0.31],
    ("awrsr-additive", "dropout-0.1"): [0.70, 0.71, 0.72, 0.73],
}


def record(value, curve):
    """A record whose every metric is ``value``; longer histories fare half as well."""
    metrics = {name: value for name in ("HR@1", "HR@10", "NDCG@10", "MRR")}
    half = {name: value / 2 for name in metrics}
    blank = {
        name: kind[0]() if isinstance(kind, tuple) else kind() for name, kind in SCHEMA.items()
    }
    groups = {"5-9": (300, metrics), "10-19": (200, half), "20-49": (5, half)}
    own = {
        "users": {"training": 500, "validation": 500, "test": 505},
        "validation": {name: value + 0.01 for name in metrics},
        "validation_filtered": {name: 1 - value for name in metrics},  # the other way round
        "test": metrics,
        "test_filtered": metrics,
        "by_length": {
            length: {"users": users, "test": values, "test_filtered": values}
            for length, (users, values) in groups.items()
        },
        "curve": {"NDCG@10": curve},
        "epochs": len(curve),
    }
    return {name: {**blank, **own}[name] for name in SCHEMA if name not in Run("x").axes}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """World ``markov`` as in MARKOV; of ``taste`` one seed of softmax and nothing else."""
    folder = tmp_path_factory.mktemp("gains")
    for run in load_grid(GRID):
        values = MARKOV[run.attention, run.variant] if run.dataset == "world-markov" else [0.2]
        if run.seed >= len(values) or (run.dataset, run.attention) == (
            "world-taste",
            "awrsr-additive",
        ):
            continue
        slow = run.attention == "softmax"
        values_by_epoch = [values[run.seed] * share for share in (0.2, 0.5 + 0.45 * (not slow), 1)]
        content = record(values[run.seed], values_by_epoch)
        Store(folder).write(run, {**content, "config": dict(run.config)})
    return folder


def test_gains_are_those_of_the_records(root):
    table = gains(grid=GRID, root=root).set_index("dataset")
    row, found = (
        table.loc["world-markov"],
        relative_difference(MARKOV["awrsr-additive", "main"], SOFTMAX),
    )
    assert (row["seeds"], row["mean_reference"], row["mean_new"]) == (4, 0.5, pytest.approx(0.615))
    assert tuple(row[["change", "low", "high", "p"]]) == pytest.approx(
        (found.change, found.low, found.high, found.p)
    )
    assert row["verdict"] == "helps" and row["missing"] == ""
    assert gains("softmax", "awrsr-additive", grid=GRID, root=root)["verdict"][0] == "hurts"


def test_what_is_missing_is_said_with_its_command(root):
    row = gains(grid=GRID, root=root, dataset="world-taste").iloc[0]
    assert row["verdict"] == "runs missing" and np.isnan(row["change"])
    assert np.isnan(row["mean_new"]) and row["mean_reference"] == 0.2
    place = {"dataset": ["world-taste"], "variant": ["main"]}
    sides = select(load_grid(GRID), {**place, "attention": ["softmax", "awrsr-additive"]})
    left = [run for run in sides if Store(root).state(run) != "done"]
    assert {("awrsr-additive", seed) for seed in SEEDS} <= {(r.attention, r.seed) for r in left}
    assert sorted(runs_of(row["missing"], GRID), key=str) == sorted(left, key=str)


def test_a_small_difference_is_equivalent_and_a_variant_can_be_compared(root):
    (row,) = gains(("awrsr-additive", "on-weights"), grid=GRID, root=root).to_dict("records")
    assert row["new"] == "awrsr-additive (on-weights)" and row["verdict"] == "equivalent"
    scattered, other = [0.4, 0.6, 0.5, 0.5], [0.45, 0.62, 0.41, 0.58]
    for pair in ((scattered, other), (other, scattered)):
        assert module._judge(*pair, 0.05)["verdict"] == "undecided"
    cases = {  # too few on one side, none at all, or no spread
        "too few seeds": ([0.6, 0.6], [0.5, 0.3, 0.4]), "runs missing": ([], [0.4] * 3),
        "undecided": ([0.6] * 3, [0.4] * 3),
    }  # fmt: skip
    for verdict, (x, y) in cases.items():
        found = module._judge(x, y, 0.05)
        assert found["verdict"] == verdict and np.isnan([found["low"], found["p"]]).all()
        assert found["change"] == pytest.approx(0.5 if x else np.nan, nan_ok=True)
    # No gain is made of weightings that no grid has together
    assert gains("recency", grid=GRID, root=root).empty


@pytest.mark.parametrize("broken, settles", [(1, True), (2, False), (4, False)])
def test_no_verdict_where_half_of_the_runs_did_not_settle(root, tmp_path, broken, settles):
    store = Store(tmp_path)
    for run in load_grid(GRID):
        if (content := Store(root).read(run)) is not None:
            rises = run.attention == "awrsr-additive" and run.seed < broken
            curve = {**content["curve"], "loss": [3.0, 3.03 if rises else 2.0, 1.0, 0.9]}
            own = {name: content[name] for name in SCHEMA if name not in run.axes}
            store.write(run, {**own, "curve": curve})
    only = {"grid": GRID, "root": tmp_path, "dataset": "world-markov"}
    told = "helps" if settles else "does not settle"
    for sides in (("awrsr-additive", "softmax"), ("softmax", "awrsr-additive")):
        (row,) = gains(*sides, **only).to_dict("records")
        assert (row["verdict"] == told) == (sides[1] == "softmax" or not settles)
        assert np.isfinite([row["low"], row["p"]]).all()
    for steady in (None, 0.02):  # not asked, or more is allowed
        assert gains(steady=steady, **only)["verdict"][0] == "helps"
    table = results(tmp_path, dataset="world-markov", variant="main")
    (pairs,) = paired(table, "NDCG@10", margin=0.05).to_dict("records")
    assert pairs["verdict"] == ("more" if settles else "does not settle")
    untold = table.drop(columns="curve"), table.assign(loss="bpr")  # where a loss may tremble
    for asked, how in ((table, {"steady": None}), *((each, {}) for each in untold)):
        assert paired(asked, "NDCG@10", margin=0.05, **how)["verdict"][0] == "more"


def test_groups_of_lengths_are_judged_apart_and_those_of_few_left_out(root):
    table = gains(grid=GRID, root=root, dataset="world-markov", min_users=100)
    assert list(table["length"]) == ["5-9", "10-19"] and list(table["users"]) == [300, 200]
    (whole,) = gains(grid=GRID, root=root, dataset="world-markov").to_dict("records")
    assert whole["length"] == "all"
    assert table["change"].to_list() == pytest.approx([whole["change"]] * 2)
    taste = gains(grid=GRID, root=root, dataset="world-taste", min_users=100)
    assert len(taste) and set(taste["verdict"]) == {"runs missing"}
    (at_most_1,) = {*gains(grid=GRID, root=root, dataset="world-markov", margin=1.0)["verdict"]}
    by_length = gains(grid=GRID, root=root, dataset="world-markov", margin=1.0, min_users=100)
    none = gains(grid=GRID, root=root / "none", dataset="world-taste", min_users=100)
    assert len(none) and set(none["verdict"]) == {"runs missing"}
    assert at_most_1 == "equivalent" and set(by_length["verdict"]) == {"equivalent"}


def test_histories_that_fill_the_window_are_one_group():
    groups = {"5-9": (10, 0.8), "10-19": (30, 0.4), "20-49": (10, 0.2)}
    scores = {
        name: {"users": users, "test": {"HR@1": x}, "test_filtered": {"HR@1": x / 2}}
        for name, (users, x) in groups.items()
    }
    seen = visible_lengths({"config": {"max_len": 10}, "by_length": scores})
    assert list(seen) == ["5-9", "10+"] and seen["5-9"] == scores["5-9"]
    assert seen["10+"]["users"] == 40
    assert seen["10+"]["test"]["HR@1"] == pytest.approx((30 * 0.4 + 10 * 0.2) / 40)
    assert seen["10+"]["test_filtered"]["HR@1"] == pytest.approx((30 * 0.4 + 10 * 0.2) / 80)
    for window in ({"max_len": 50}, {}):  # a model without a window sees all
        assert visible_lengths({"config": window, "by_length": scores}) == scores


def test_epochs_are_counted_to_one_goal_for_all(root):
    table = results(root, dataset="world-markov", variant="main")
    found = epochs_to(table, share=0.9).set_index("attention")
    assert found["goal"].tolist() == pytest.approx([0.45, 0.45])
    assert found["mean"].to_dict() == {"softmax": 3, "awrsr-additive": 2}
    slow = table.copy()  # one of the four refined seeds gets there an epoch later
    slow.at[slow.index[slow["attention"] == "awrsr-additive"][0], "curve"] = {
        "NDCG@10": [0.1, 0.1, 0.6]
    }
    slow = epochs_to(slow, share=0.9).set_index("attention")
    assert slow.loc["awrsr-additive", ["mean", "fewest", "most"]].tolist() == [2.25, 2, 3]
    assert sorted(slow.loc["awrsr-additive", "epochs"]) == [2, 2, 2, 3]
    higher = epochs_to(table, share=1.0).set_index("attention")
    never = higher.loc["softmax"]  # one seed does not get there, however long one waits
    assert never["reached"] == 3 and never["most"] == np.inf and np.isfinite(never["fewest"])
    assert epochs_to(table, reference="uniform").empty


def test_a_rise_of_the_loss_counts_on_the_way_down_alone():
    curves = [
        {"loss": [4.0, 5.0, 2.0, 2.5, 1.0, 3.0]},  # by a quarter; the last rise comes too late
        {"loss": [4.0, 3.0, 2.0, 1.0, 2.0]},
        {"loss": [2.0]},
        {},
    ]
    table = pd.DataFrame({"curve": curves}, index=[3, 1, 7, 5])
    found = largest_rise(table)
    assert found.to_dict() == {3: 0.25, 1: 0, 7: 0, 5: 0}
    assert largest_rise(table, share=1.0).to_dict() == {3: 2.0, 1: 1.0, 7: 0, 5: 0}
    assert largest_rise(table[:0]).empty


def test_each_weighting_chooses_on_validation(root):
    table = chosen(["main", "dropout-0.1", "dropout-0.9"], grid=GRID, root=root)
    table = table.droplevel(["split", "model", "loss"])
    assert table.loc[("world-markov", "softmax"), "variant"] == "main"
    additive = table.loc[("world-markov", "awrsr-additive")]
    assert additive["variant"] == "dropout-0.1" and additive["test"] == pytest.approx(0.715)
    assert additive["dropout"] == 0.1 and table.loc[("world-markov", "softmax"), "dropout"] == 0.2
    assert set(table.loc["world-markov", "tried"]) == {"2 of 2"}
    missing = runs_of(table.loc[("world-markov", "softmax"), "missing"], GRID)
    assert [(run.variant, run.seed) for run in missing] == [("dropout-0.1", 2), ("dropout-0.1", 3)]
    none = table.loc[("world-taste", "awrsr-additive")]
    assert none["variant"] == "" and none["seeds"] == 0 and none["missing"]


def test_the_choice_is_made_by_the_ruler_that_chose_the_epochs(root, tmp_path):
    grid = {**GRID, "config": {**GRID["config"], "filter_seen": True}}
    for run in load_grid(grid):
        if run.dataset == "world-markov" and run.seed < 2:
            content = record(MARKOV[run.attention, run.variant][run.seed], [0.1])
            Store(tmp_path).write(run, {**content, "config": dict(run.config)})
    found = [
        chosen(["main", "dropout-0.1"], grid=tried, root=folder, attention="softmax").iloc[0]
        for tried, folder in ((GRID, root), (grid, tmp_path))
    ]
    assert [row["variant"] for row in found] == ["main", "dropout-0.1"]
    assert found[1]["validation"] == pytest.approx(1 - 0.305)


def test_candidates_are_compared_on_the_seeds_they_share(root, tmp_path):
    store, one_seed = (
        Store(tmp_path),
        {("softmax", "main"): [0.5, 0.1], ("softmax", "dropout-0.1"): [0.4]},
    )
    for run in load_grid(GRID):
        values = one_seed.get((run.attention, run.variant), [])
        if run.dataset == "world-markov" and run.seed < len(values):
            store.write(run, {**record(values[run.seed], [0.1]), "config": dict(run.config)})
    table = chosen(["main", "dropout-0.1"], grid=GRID, root=tmp_path, attention="softmax")
    assert table["variant"].iloc[0] == "main" and table["seeds"].iloc[0] == 2


def test_candidates_without_a_seed_in_common_are_not_compared(tmp_path):
    for run in load_grid(GRID):
        seed = {"main": 0, "dropout-0.1": 1}.get(run.variant)
        if run.dataset == "world-markov" and run.seed == seed:
            content = {**record(0.5 + seed / 10, [0.1]), "config": dict(run.config)}
            Store(tmp_path).write(run, content)
    table = chosen(["main", "dropout-0.1"], grid=GRID, root=tmp_path, dataset="world-markov")
    assert set(table["tried"]) == {"2 of 2"}
    assert set(table["variant"]) == {""} and set(table["seeds"]) == {0}
    assert (table["missing"] != "").all() and table["dropout"].isna().all()


def test_a_refit_chooses_nothing(tmp_path):
    splits = ["leave-one-out", "leave-one-out-refit"]
    grid = {**GRID, "runs": [{"datasets": ["world-markov"], "splits": splits}]}
    for run in load_grid(grid):
        content = {**record(0.5, [0.1]), "config": dict(run.config)}
        if run.split == "leave-one-out-refit":
            content |= {"validation": {}, "validation_filtered": {}}
        Store(tmp_path).write(run, content)
    table = chosen(["main"], grid=grid, root=tmp_path)
    assert list(table.index.get_level_values("split")) == ["leave-one-out"]
    assert table["variant"].iloc[0] == "main"


# ---- figures -----------------------------------------------------------------------------------


def test_a_forest_shows_each_interval_and_says_where_there_is_none(root):
    table = gains(grid=GRID, root=root)
    ax = plotting.forest(table, group="metric", margin=0.05)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["world-taste", "world-markov"]
    (point, *_) = ax.containers[0]
    assert point.get_xdata().tolist() == pytest.approx([100 * table["change"][0]])
    assert point.get_ydata().tolist() == [1]
    assert [text.get_text() for text in ax.texts] == ["no records"]


def test_in_a_forest_what_has_no_interval_is_hollow():
    table = pd.DataFrame({
        "dataset": ["a", "b", "a"], "metric": ["ours", "ours", "published"],
        "change": [0.1, -0.2, 0.3], "low": [0.0, np.nan, np.nan], "high": [0.2, np.nan, np.nan],
    })  # fmt: skip
    ax = plotting.forest(table, group="metric")
    lines = [bars.lines[0] for bars in ax.containers]
    marks = [(x, line.get_mfc()) for line in lines for x in line.get_xdata()]
    faces = {round(x): face for x, face in marks}
    assert faces.pop(10) != "white" and faces == {-20: "white", 30: "white"}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ours", "published"]


def test_curves_of_all_seeds_share_a_line_style(root):
    table = results(root, dataset="world-markov", variant="main")
    ax = plotting.seed_curves(table)
    assert len(ax.get_lines()) == 8
    assert len({line.get_linestyle() for line in ax.get_lines()}) == 2
    assert len(ax.get_legend().get_texts()) == 2


def test_the_library_exports_them():
    assert all(hasattr(sr.study, name) for name in module.__all__)
