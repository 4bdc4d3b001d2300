"""Every kind of figure the book uses, one function each.

One palette (Okabe & Ito's, safe for colour-blind readers), and colour never alone: series
differ in line style and marker too. Each function draws on ``ax`` (or on a new one) and returns it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

__all__ = ["PALETTE", "heatmap", "learning_curve", "learning_curves"]

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
LINES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]


def learning_curve(history, metric: str | None = None, ax: Axes | None = None) -> Axes:
    """The loss (left axis) and the monitored metric (right axis) of one training run."""
    ax = _axes(ax)
    epochs = history.column("epoch")
    metric = metric or history.monitor
    ax.plot(epochs, history.column("loss"), color=PALETTE[1], ls=LINES[1], label="training loss")
    ax.set(xlabel="epoch", ylabel="training loss")
    other = ax.twinx()
    other.plot(epochs, history.column(metric), color=PALETTE[0], label=f"validation {metric}")
    other.plot(history.best_epoch, history.best[metric], MARKERS[0], color=PALETTE[0],
               label=f"best, epoch {history.best_epoch}")
    other.set_ylabel(f"validation {metric}")
    handles = [h for axis in (ax, other) for h in axis.get_legend_handles_labels()[0]]
    ax.legend(handles, [h.get_label() for h in handles], frameon=False, loc="center right")
    return ax


def learning_curves(histories: Mapping[str, object], metric: str = "NDCG@10",
                    ax: Axes | None = None) -> Axes:
    """One column of several histories over the epochs: ``{label: history}``."""
    ax = _axes(ax)
    for i, (label, history) in enumerate(histories.items()):
        ax.plot(history.column("epoch"), history.column(metric), label=label, **_style(i))
    ax.set(xlabel="epoch", ylabel=metric if metric == "loss" else f"validation {metric}")
    ax.legend(frameon=False)
    return ax


def heatmap(matrix, labels: Sequence[str] | None = None, ax: Axes | None = None,
            title: str = "", annotate: bool | None = None, hide: np.ndarray | None = None,
            **options) -> Axes:
    """A (query, key) map: queries downwards, keys to the right.

    Args:
        labels: of the positions.
        annotate: write the numbers; by default where there are at most ten rows.
        hide: true where a cell is not to be shown; by default above the diagonal (the future).
    """
    matrix = np.asarray(matrix.detach().cpu() if hasattr(matrix, "detach") else matrix, float)
    ax = _axes(ax)
    if hide is None:
        hide = np.triu(np.ones_like(matrix, dtype=bool), 1)
    annotate = len(matrix) <= 10 if annotate is None else annotate
    ticks = labels if labels is not None else "auto"
    options = {"cmap": "cividis", "cbar": True, "fmt": ".2f", "square": True, **options}
    sns.heatmap(matrix, mask=hide, annot=annotate, xticklabels=ticks, yticklabels=ticks, ax=ax,
                **options)
    ax.set(xlabel="key (looked at)", ylabel="query (looking)", title=title)
    return ax


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(figsize=(6, 3.6), layout="constrained")[1] if ax is None else ax


def _style(i: int) -> dict:
    return {"color": PALETTE[i % len(PALETTE)], "ls": LINES[i % len(LINES)],
            "marker": MARKERS[i % len(MARKERS)], "markersize": 4}
