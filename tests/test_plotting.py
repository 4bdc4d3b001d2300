"""Figures show the numbers they are given, on the axes they are given, readable without colour."""

import itertools

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb

import seqrec_lib as sr
from seqrec_lib import plotting

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def no_figure_left_open():
    plt.close("all")
    yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.figure().add_subplot()


def history(scores=(0.1, 0.3, 0.2), monitor="NDCG@10"):
    entries = [
        {"epoch": i + 1, "loss": 5.0 - i, "seconds": 1.0, **({} if s is None else {monitor: s})}
        for i, s in enumerate(scores)
    ]
    return sr.History(entries, monitor=monitor)


def points(line):
    return list(zip(*line.get_data(), strict=True))


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


DRAWN = {
    "learning_curve": lambda **o: plotting.learning_curve(history(), **o),
    "learning_curves": lambda **o: plotting.learning_curves({"a": history()}, **o),
    "heatmap": lambda **o: plotting.heatmap(np.eye(3), **o),
    "bars": lambda **o: plotting.bars(pd.DataFrame({"a": [1.0]}, index=["x"]), **o),
    "curves": lambda **o: plotting.curves([1, 2], {"a": [3, 4]}, **o),
    "labelled_points": lambda **o: plotting.labelled_points({"a": (0, 1)}, ["g"], **o),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_it_draws_on_the_axes_it_is_given_or_makes_one_figure(draw, ax):
    assert draw(ax=ax) is ax and len(plt.get_fignums()) == 1
    made = draw()
    assert made is not ax and len(plt.get_fignums()) == 2
    made.figure.canvas.draw()


def test_a_run_s_curve_shows_loss_metric_and_best_epoch(ax):
    assert history().plot(ax=ax) is ax
    (loss,) = ax.get_lines()
    assert points(loss) == [(1, 5.0), (2, 4.0), (3, 3.0)]
    (other,) = (a for a in ax.figure.axes if a is not ax)
    metric, best = other.get_lines()
    assert points(metric) == [(1, 0.1), (2, 0.3), (3, 0.2)] and points(best) == [(2, 0.3)]
    assert labels(ax) == ["training loss", "validation NDCG@10", "best, epoch 2"]
    assert ax.get_ylabel() == "training loss" and other.get_ylabel() == "validation NDCG@10"


def test_a_run_without_validation_has_a_loss_to_show(ax):
    history((None, None)).plot(ax=ax)
    assert points(ax.get_lines()[0]) == [(1, 5.0), (2, 4.0)] and len(ax.figure.axes) == 1


@pytest.mark.parametrize("metric", ["NDCG@10", "loss"])
def test_several_runs_differ_in_more_than_colour(ax, metric):
    runs = {f"run {i}": history((0.1 * i, 0.2, 0.3)) for i in range(7)}
    plotting.learning_curves(runs, metric, ax=ax)
    lines = ax.get_lines()
    assert labels(ax) == list(runs)
    for line, run in zip(lines, runs.values(), strict=True):
        assert list(line.get_ydata()) == run.column(metric)
    for one, other in itertools.combinations(lines, 2):
        assert one.get_color() != other.get_color()
        assert one.get_marker() != other.get_marker()
    assert len({str(line._dash_pattern) for line in lines}) == 7
    assert ax.get_ylabel() == ("loss" if metric == "loss" else "validation NDCG@10")


def test_no_two_weightings_look_alike(ax):
    names = [*sr.WEIGHTINGS, "uniform-loose"]
    assert {*names} == {*plotting.STYLED}
    looks = [plotting._style(place) for place in plotting._places([*names, "mine", "yours"])]
    seen = {(look["color"], str(look["ls"]), look["marker"]) for look in looks}
    assert len(seen) == len(names) + 2
    assert plotting._places(["mine", "awrsr-additive", "yours"]) == [0, 1, 2]


def test_the_palette_is_told_apart_by_colour_blind_readers():
    """Simulated deuteranopia and protanopia (Viénot et al. 1999), in linear RGB."""
    blind = {
        "deuteranopia": [[0.292, 0.708, 0], [0.292, 0.708, 0], [-0.022, 0.022, 1]],
        "protanopia": [[0.112, 0.888, 0], [0.112, 0.888, 0], [0.004, -0.004, 1]],
    }
    for matrix in blind.values():
        seen = [np.array(matrix) @ np.array(to_rgb(c)) ** 2.2 for c in plotting.PALETTE]
        seen = [np.clip(c, 0, 1) ** (1 / 2.2) for c in seen]
        for one, other in itertools.combinations(seen, 2):
            assert np.linalg.norm(one - other) > 0.1


def test_a_map_hides_the_future_and_writes_the_rest(ax):
    matrix = torch.tensor([[1.0, 0.0], [0.25, 0.75]], requires_grad=True)
    plotting.heatmap(matrix, labels=["a", "b"], ax=ax, title="layer 1")
    assert [text.get_text() for text in ax.texts] == ["1.00", "0.25", "0.75"]
    shown = ax.collections[0].get_array()
    assert shown.mask.ravel().tolist() == [False, True, False, False]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a", "b"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("key (looked at)", "query (looking)")
    assert ax.get_title() == "layer 1" and ax.yaxis_inverted()


def test_a_map_s_numbers_and_cells_can_be_chosen(ax):
    plotting.heatmap(np.eye(11), ax=ax)
    assert not ax.texts  # too many to read
    other = plotting.heatmap(np.eye(11), annotate=True, hide=np.zeros((11, 11), bool))
    assert len(other.texts) == 121


def test_bars_stand_for_the_frame_and_differ_in_hatching(ax):
    frame = pd.DataFrame({"ours": [1.0, 2.0], "theirs": [3.0, 4.0]}, index=["x", "y"])
    plotting.bars(frame, errors=frame / 10, ylabel="seconds", reference=2.5, ax=ax)
    heights = [patch.get_height() for patch in ax.patches]
    assert heights == [1.0, 2.0, 3.0, 4.0] and labels(ax) == ["ours", "theirs"]
    assert len({patch.get_hatch() for patch in ax.patches}) == 2
    assert len({patch.get_facecolor() for patch in ax.patches}) == 2
    edges = sorted((p.get_x(), p.get_x() + p.get_width()) for p in ax.patches)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(edges))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["x", "y"]
    assert 2.5 in [line.get_ydata()[0] for line in ax.get_lines()]


def test_points_keep_their_names_and_groups_their_markers(ax):
    where = {"beauty": (0.1, 1.0), "ml-1m": (0.4, 2.0), "yelp": (0.3, 0.0)}
    plotting.labelled_points(where, ["low", "high", "high"], ax=ax)
    assert {text.get_text(): text.xy for text in ax.texts} == where
    low, high = ax.get_lines()
    assert points(low) == [(0.1, 1.0)] and points(high) == [(0.4, 2.0), (0.3, 0.0)]
    assert low.get_marker() != high.get_marker() and labels(ax) == ["low", "high"]


def test_curves_draw_each_line_over_x(ax):
    plotting.curves([1, 2, 4], {"a": [5, 6, 7], "b": [8, 9, 9]}, "length", "seconds", ax=ax)
    drawn = {line.get_label(): points(line) for line in ax.get_lines()}
    assert drawn == {"a": [(1, 5), (2, 6), (4, 7)], "b": [(1, 8), (2, 9), (4, 9)]}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("length", "seconds")


def test_several_maps_share_one_scale():
    maps = {"one": np.eye(3), "other": torch.eye(3) * 4}
    axes = plotting.heatmaps(maps, hide=[np.zeros((3, 3)), np.ones((3, 3))])
    assert [ax.get_title() for ax in axes] == ["one", "other"]
    assert {ax.collections[0].get_clim() for ax in axes} == {(0, 4)}


def test_a_timeline_knows_users_by_their_ids():
    days = np.tile(np.arange(6), 3) * 86_400
    log = sr.Interactions([[1] * 6, [2] * 6, [3] * 6], 3, timestamps=days)
    drawn = []
    for inter, user in ((log, 2), (log.select_users([2, 1]), 0)):
        ax = plotting.timeline(inter, sr.leave_one_out(inter), [user])
        drawn.append({line.get_label(): list(line.get_xdata()) for line in ax.lines})
    assert drawn[0] == drawn[1] and drawn[0]["training"] == [0, 1, 2, 3]


def test_maps_share_a_scale_though_a_cell_is_unknown():
    maps = {"a": np.array([[0.5, np.nan], [0.1, 0.2]]), "b": torch.eye(2)}
    for ax in plotting.heatmaps(maps):
        assert ax.collections[0].get_clim() == (0, 1)


def test_a_bar_beside_heatmaps_says_what_the_colours_mean_and_what_lies_beyond():
    maps = {"a": np.eye(3), "b": 2 * np.eye(3)}
    assert len(plotting.heatmaps(maps)[0].figure.axes) == 2
    axes = plotting.heatmaps(maps, meaning="weight", vmax=1)
    *both, bar = axes[0].figure.axes
    assert both == [*axes] and bar.get_ylabel() == "weight"
    assert axes[0].collections[0].colorbar.extend == "max"
