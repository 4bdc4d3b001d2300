"""Every kind of figure the book uses, one function each.

One palette (Okabe & Ito's, safe for colour-blind readers), and colour never alone: series
differ in line style and marker too. Each function draws on ``ax`` (or on a new one) and returns it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

__all__ = [
    "PALETTE",
    "arrows",
    "bars",
    "by_length",
    "curves",
    "forest",
    "heatmap",
    "heatmaps",
    "labelled_points",
    "learning_curve",
    "learning_curves",
    "regimes",
    "seed_curves",
    "seed_intervals",
    "timeline",
]

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00"]
LINES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)),
         (0, (5, 1, 1, 1, 1, 1))]  # fmt: skip
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]  # 7, 9 and 8: no two styles are alike for long
HATCHES = ["", "//", "..", "xx", "\\\\", "++", "oo"]
#: These look the same in every figure, in the order of the palette.
STYLED = ["softmax", "awrsr-additive", "positional", "uniform", "softmax-positional",
          "awrsr-value", "awrsr-simple", "last", "recency", "uniform-loose", "wasserstein",
          "awrsr-stochastic", "shuffled", "random"]  # fmt: skip


def learning_curve(history, metric: str | None = None, ax: Axes | None = None) -> Axes:
    """The loss (left axis) and the monitored metric (right axis, where there is validation)."""
    ax = _axes(ax)
    epochs = history.column("epoch")
    metric = metric or history.monitor
    ax.plot(epochs, history.column("loss"), color=PALETTE[1], ls=LINES[1], label="training loss")
    ax.set(xlabel="epoch", ylabel="training loss")
    if np.isnan(history.column(metric)).all():
        return ax
    other = ax.twinx()
    other.plot(epochs, history.column(metric), color=PALETTE[0], label=f"validation {metric}")
    other.plot(
        history.best_epoch,
        history.best[metric],
        MARKERS[0],
        color=PALETTE[0],
        label=f"best, epoch {history.best_epoch}",
    )
    other.set_ylabel(f"validation {metric}")
    handles = [h for axis in (ax, other) for h in axis.get_legend_handles_labels()[0]]
    ax.legend(handles, [h.get_label() for h in handles], frameon=False, loc="center right")
    return ax


def learning_curves(
    histories: Mapping[str, object], metric: str = "NDCG@10", ax: Axes | None = None
) -> Axes:
    """One column of several histories over the epochs: ``{label: history}``."""
    ax = _axes(ax)
    for i, (label, history) in enumerate(histories.items()):
        ax.plot(history.column("epoch"), history.column(metric), label=label, **_style(i))
    ax.set(xlabel="epoch", ylabel=metric if metric == "loss" else f"validation {metric}")
    ax.legend(frameon=False)
    return ax


def heatmap(
    matrix,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
    title: str = "",
    annotate: bool | None = None,
    hide: np.ndarray | None = None,
    **options,
) -> Axes:
    """A (query, key) map: queries downwards, keys to the right.

    Args:
        labels: of the positions.
        annotate: write the numbers; by default where there are at most ten rows.
        hide: true where a cell is not to be shown; by default above the diagonal (the future).
    """
    matrix, ax = _matrix(matrix), _axes(ax)
    if hide is None:
        hide = np.triu(np.ones_like(matrix, dtype=bool), 1)
    annotate = len(matrix) <= 10 if annotate is None else annotate
    ticks = labels if labels is not None else "auto"
    options = {"cmap": "cividis", "cbar": True, "fmt": ".2f", "square": True, **options}
    sns.heatmap(
        matrix, mask=hide, annot=annotate, xticklabels=ticks, yticklabels=ticks, ax=ax, **options
    )
    ax.set(xlabel="key (looked at)", ylabel="query (looking)", title=title)
    return ax


def _matrix(values) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, float)


def bars(
    frame, errors=None, ylabel: str = "", reference: float | None = None, ax: Axes | None = None
) -> Axes:
    """Grouped bars: a group for each row of ``frame``, a bar for each column.

    Args:
        frame: a pandas DataFrame of numbers.
        errors: as ``frame``: half the height of each error bar.
        reference: draws a dashed line there.
    """
    ax = _axes(ax)
    width, place = 0.8 / len(frame.columns), np.arange(len(frame))
    for i, column in enumerate(frame.columns):
        ax.bar(
            place + (i + 0.5) * width - 0.4,
            frame[column],
            width * 0.92,
            label=column,
            color=PALETTE[i % len(PALETTE)],
            hatch=HATCHES[i % len(HATCHES)],
            edgecolor="white",
            yerr=None if errors is None else errors[column],
            capsize=2,
            ecolor="black",
        )
    if reference is not None:
        ax.axhline(reference, color="black", ls="--", lw=1)
    ax.set_xticks(place, frame.index)
    ax.set_ylabel(ylabel)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def labelled_points(
    points: Mapping[str, tuple[float, float]],
    groups: Sequence[str],
    ax: Axes | None = None,
    offsets: Mapping[str, tuple[float, float]] | None = None,
) -> Axes:
    """Named points; those of a group (one name for each point) share colour and marker.

    Args:
        offsets: of a name from its point, in points, where neighbours are in each other's way.
    """
    ax = _axes(ax)
    for i, group in enumerate(dict.fromkeys(groups)):
        chosen = [xy for xy, own in zip(points.values(), groups, strict=True) if own == group]
        ax.plot(
            *zip(*chosen, strict=True),
            MARKERS[i % len(MARKERS)],
            color=PALETTE[i % len(PALETTE)],
            label=group,
        )
    for name, xy in points.items():
        offset = (offsets or {}).get(name, (6, 3))
        ax.annotate(name, xy, xytext=offset, textcoords="offset points", fontsize=8)
    ax.legend(frameon=False)
    return ax


def timeline(inter, split, users: Sequence[int], ax: Axes | None = None) -> Axes:
    """When the events of some users happened, and what a split makes of each.

    Args:
        inter: a log with timestamps, of whose events the split drops none.
        split: of ``inter``.
        users: rows of ``inter``, drawn from top to bottom.
    """
    ax = _axes(ax)
    offsets, days = inter.sequences.offsets, (inter.timestamps - inter.timestamps.min()) / 86_400
    own = [*range(inter.num_users)] if inter.user_ids is None else inter.user_ids.tolist()
    ids = own if split.train.user_ids is None else split.train.user_ids.tolist()
    trained = dict(zip(ids, split.train.lengths.tolist(), strict=True))
    found = {"training": [], "history only": [], "validation target": [], "test target": []}
    for y, user in enumerate(users):
        roles = ["history only"] * (offsets[user + 1] - offsets[user])
        first = trained.get(own[user], 0)
        roles[:first] = ["training"] * first
        for name in ("validation", "test"):
            part = split.part(name)
            for row in np.flatnonzero(part.users == user):
                roles[len(part.histories[row])] = f"{name} target"
        for role, day in zip(roles, days[offsets[user] : offsets[user + 1]], strict=True):
            found[role].append((day, y))
    for i, (role, events) in enumerate(found.items()):
        x, y = zip(*events, strict=True) if events else ((), ())
        ax.plot(
            x,
            y,
            MARKERS[i],
            color=PALETTE[i],
            label=role,
            markersize=5 + 2 * (i > 1),
            markerfacecolor="white" if role == "history only" else PALETTE[i],
        )
    if "cutoff" in split.notes:
        ax.axvline(
            (split.notes["cutoff"] - inter.timestamps.min()) / 86_400, color="black", ls="--"
        )
    ax.set(xlabel="day", ylabel="user", yticks=range(len(users)), title=split.name)
    ax.set_ylim(len(users) - 0.5, -0.5)
    return ax


def heatmaps(
    maps: Mapping[str, object],
    labels: Sequence[str] | None = None,
    hide: Sequence | None = None,
    meaning: str | None = None,
    **options,
) -> np.ndarray:
    """Several (query, key) maps in a row, on one colour scale: ``{title: matrix}``.

    Args:
        hide: for each map, true where a cell is not to be shown.
        meaning: of the colours, written along a bar that shows their scale; no bar without it.

    Returns:
        The axes.
    """
    size = (0.4 + 3 * len(maps) + 0.8 * (meaning is not None), 3)
    axes = plt.subplots(1, len(maps), figsize=size, layout="constrained", squeeze=False)[1][0]
    top = max(float(np.nanmax(_matrix(m))) for m in maps.values())
    hide = [None] * len(maps) if hide is None else [np.asarray(cells, bool) for cells in hide]
    options = {
        "vmin": 0,
        "vmax": top,
        "cbar": False,
        **options,
    }
    for ax, (title, matrix), hidden in zip(axes, maps.items(), hide, strict=True):
        heatmap(matrix, labels, ax=ax, title=title, hide=hidden, **options)
    for ax in axes[1:]:
        ax.set_ylabel("")
    if meaning is not None:
        low = min(float(np.nanmin(_matrix(m))) for m in maps.values())
        beyond = (low < options["vmin"]) + 2 * (top > options["vmax"])
        axes[0].figure.colorbar(axes[0].collections[0], ax=[*axes], label=meaning, shrink=0.8,
                                extend=["neither", "min", "max", "both"][beyond])  # fmt: skip
    return axes


def curves(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    xlabel: str = "",
    ylabel: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Lines over a common ``x``: ``{label: values}``."""
    ax = _axes(ax)
    for i, (label, y) in enumerate(lines.items()):
        ax.plot(x, y, label=label, **_style(i))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(frameon=False)
    return ax


def seed_intervals(
    summary, label: str = "attention", xlabel: str = "test NDCG@10", ax: Axes | None = None
) -> Axes:
    """Means over seeds with their intervals, one line of the figure for each.

    Args:
        summary: a table with ``mean``, ``low`` and ``high``, as :func:`study.summarize` makes.
        label: the column that names the lines.
    """
    if ax is None:
        ax = plt.subplots(figsize=(6, 1.5 + 0.3 * len(summary)), layout="constrained")[1]
    rows = np.arange(len(summary))[::-1]
    ends = [summary["mean"] - summary["low"], summary["high"] - summary["mean"]]
    ax.errorbar(summary["mean"], rows, xerr=ends, fmt=MARKERS[0], color=PALETTE[0], capsize=3)
    ax.set(yticks=rows, yticklabels=summary[label], xlabel=xlabel)
    ax.grid(axis="x", alpha=0.3)
    return ax


def forest(
    table,
    label: str = "dataset",
    group: str | None = None,
    margin: float | None = None,
    xlabel: str = "relative change (%)",
    ax: Axes | None = None,
) -> Axes:
    """Relative changes with their intervals, a row of the figure for each ``label``.

    Args:
        table: with ``change``, ``low`` and ``high``, as :func:`study.gains` makes; a change
            without interval is drawn hollow.
        group: the column that tells apart the marks within a row.
        margin: shades the changes too small to matter.
    """
    rows = list(dict.fromkeys(table[label]))[::-1]
    if ax is None:
        ax = plt.subplots(figsize=(7, 1 + 0.45 * len(rows)), layout="constrained")[1]
    groups = [None] if group is None else list(dict.fromkeys(table[group]))
    for i, (name, place) in enumerate(zip(groups, _places(groups), strict=True)):
        own = table if name is None else table[table[group] == name]
        own = own[own["change"].notna()]
        y = np.array([rows.index(row) for row in own[label]]) + 0.11 * (len(groups) - 1 - 2 * i)
        change, low, high = (100 * own[c].to_numpy(float) for c in ("change", "low", "high"))
        bare = np.isnan(low)
        look = {k: v for k, v in _style(place).items() if k in ("marker", "color")}
        look |= {"ls": "", "capsize": 3}
        for part, face in ((~bare, None), (bare, "white")):
            ends = [(change - low)[part], (high - change)[part]]
            named = name if bare.all() == (face == "white") else None
            ax.errorbar(change[part], y[part], xerr=ends, mfc=face, label=named, **look)
    for row in set(rows) - set(table.loc[table["change"].notna(), label]):
        ax.annotate("no records", (0, rows.index(row)), xytext=(4, 0), va="center", fontsize=8,
                    textcoords="offset points", color="dimgrey")  # fmt: skip
    if margin is not None:
        ax.axvspan(-100 * margin, 100 * margin, color="grey", alpha=0.15, lw=0)
    ax.axvline(0, color="black", lw=0.8)
    ax.set(yticks=range(len(rows)), yticklabels=rows, xlabel=xlabel, ylim=(-0.6, len(rows) - 0.4))
    if group is not None:
        ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return ax


def seed_curves(table, metric: str = "NDCG@10", ax: Axes | None = None) -> Axes:
    """The learning curves of records: a thin line a seed, a colour and style a weighting."""
    ax = _axes(ax)
    names = table["attention"].unique()
    for name, place in zip(names, _places(names), strict=True):
        group = table[table["attention"] == name]
        style = {**_style(place), "marker": None, "lw": 1, "alpha": 0.8}
        for number, curve in enumerate(group["curve"]):
            scores = curve.get(metric, [])
            label = name if number == 0 else None
            ax.plot(range(1, len(scores) + 1), scores, label=label, **style)
    ax.set(xlabel="epoch", ylabel=f"validation {metric}")
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(names) > 6 else {}
    ax.legend(frameon=False, **beside)
    return ax


def by_length(table, ylabel: str = "test NDCG@10", ax: Axes | None = None) -> Axes:
    """A metric by the length of users' histories, a line for each weighting.

    Args:
        table: as :func:`study.by_length` makes, of one data set; the bars show the standard
            deviation over seeds.
    """
    ax = _axes(ax)
    lengths = [x for x in table["length"].cat.categories if x in set(table["length"])]
    names = table["attention"].unique()
    for i, (name, place) in enumerate(zip(names, _places(names), strict=True)):
        group = table[table["attention"] == name]
        found = group.groupby("length", observed=False)["value"].agg(["mean", "std"]).loc[lengths]
        ax.errorbar(np.arange(len(lengths)) + 0.04 * i, found["mean"], found["std"], label=name,
                    capsize=2, **_style(place))  # fmt: skip
    ax.set(xticks=range(len(lengths)), xticklabels=lengths, xlabel="items in the history",
           ylabel=ylabel)  # fmt: skip
    ax.legend(frameon=False)
    return ax


def regimes(
    ours,
    published=None,
    ax: Axes | None = None,
    y: str = "g",
    ylabel: str = "reliance: Hedges' g of softmax over uniform",
) -> Axes:
    """Mixing against reliance: a point for each data set, with intervals both ways.

    Args:
        ours: as :func:`study.regimes` makes; data sets without a point are left out, and worlds
            ("world-..", named without that) have a mark of their own. None draws none of ours.
        published: as :func:`study.published_regimes` makes; drawn hollow, with the interval
            that their number of seeds implies for g alone.
        y: the column drawn upwards, with its ends in ``{y}_low`` and ``{y}_high``.
    """
    if ax is None:
        ax = plt.subplots(figsize=(7, 5), layout="constrained")[1]
    ax.axhline(0, color="grey", lw=0.8)
    made_up = None if ours is None else ours["dataset"].str.startswith("world-")
    sides = {"published": published}
    if ours is not None:
        sides = {
            "this study, real logs": ours[~made_up],
            "this study, worlds": ours[made_up],
        } | sides
    points = []
    for i, (name, table) in enumerate(sides.items()):
        table = None if table is None else table.dropna(subset=["mixing", y])
        if table is None or table.empty:
            continue
        look = {"fmt": MARKERS[i], "color": PALETTE[i], "capsize": 2, "lw": 1}
        if name == "published":
            look |= {"mfc": "white", "alpha": 0.6}
        error = {"yerr": [table[y] - table[f"{y}_low"], table[f"{y}_high"] - table[y]]}
        if "mixing_low" in table:
            error["xerr"] = (table["mixing_high"] - table["mixing_low"]) / 2
        ax.errorbar(table["mixing"], table[y], **error, label=name, **look)
        named = table.assign(dataset=table["dataset"].str.removeprefix("world-"))
        named = named[["dataset", "mixing", y]].itertuples(index=False)
        points += [(*point, {"color": look["color"]}) for point in named]
    ax.margins(x=0.12)
    ax.set(xlabel="mixing ratio (softmax models)", xlim=(0, None), ylabel=ylabel)
    _name(ax, points)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False)
    return ax


def arrows(
    vectors: Mapping[str, Sequence[float]],
    total: str | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Vectors in the plane: ``{label: (x, y)}``, each with its label.

    Args:
        total: label of the sum; then the vectors stand tip to tail, and the sum is drawn too.
    """
    ax = _axes(ax)
    tip = corner = np.zeros(2)
    drawn = [(label, np.asarray(vector, float)) for label, vector in vectors.items()]
    if total is not None:
        drawn.append((total, sum(vector for _, vector in drawn)))
    for i, (label, vector) in enumerate(drawn):
        start = np.zeros(2) if total is None or i == len(vectors) else tip
        tip = start + vector
        corner = np.vstack([corner, tip])
        look = {"arrowstyle": "->", "shrinkA": 0, "shrinkB": 0, "lw": 1.8}
        look |= {"color": PALETTE[i % len(PALETTE)], "ls": LINES[i % len(LINES)]}
        ax.annotate("", tip, start, arrowprops=look)
        aside = (-18, -12) if total is not None and i == len(vectors) else (5, 4)
        ax.annotate(label, (start + tip) / 2, xytext=aside, textcoords="offset points", fontsize=8)
    low, high = corner.min(0), corner.max(0)
    margin = 0.12 * max(high - low)
    ax.set(title=title, aspect="equal", xlim=(low[0] - margin, high[0] + margin),
           ylim=(low[1] - margin, high[1] + margin))  # fmt: skip
    ax.grid(alpha=0.3)
    return ax


def _name(ax: Axes, points: Sequence[tuple[str, float, float, dict]], size: float = 8) -> None:
    """Write each name beside its point, where it covers least of the points and other names.

    The scales of ``ax`` must be set. Lengths are in points of print, the width of a letter a guess.
    """
    ax.figure.draw_without_rendering()  # limits and margins are found when needed
    to_print = 72 / ax.figure.dpi
    places = ax.transData.transform([point[1:3] for point in points]) * to_print if points else []
    taken = [np.array([x, y, x, y]) + (-4, -4, 4, 4) for x, y in places]
    for (name, *point, style), (x, y) in zip(points, places, strict=True):
        width = 0.6 * size * len(name)
        asides = [(dx, dy) for dy in (3, -3 - size, 4 + size, -4 - 2 * size)
                  for dx in (5, -5 - width)]  # fmt: skip
        boxes = [np.array([x + dx, y + dy, x + dx + width, y + dy + size]) for dx, dy in asides]
        covered = [sum(_overlap(box, other) for other in taken) for box in boxes]
        best = int(np.argmin(covered))
        taken.append(boxes[best])
        ax.annotate(name, point, xytext=asides[best], textcoords="offset points", fontsize=size,
                    **style)  # fmt: skip


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """The area that two boxes (left, bottom, right, top) share."""
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return max(width, 0) * max(height, 0)


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(figsize=(6, 3.6), layout="constrained")[1] if ax is None else ax


def _places(names: Sequence[str | None]) -> list[int]:
    """Which style to draw each in: a weighting's own; others take those that are left."""
    own = {name: STYLED.index(name) for name in names if name in STYLED}
    left = (i for i in count() if i not in own.values())
    return [own[name] if name in own else next(left) for name in names]


def _style(i: int) -> dict:
    return {
        "color": PALETTE[i % len(PALETTE)],
        "ls": LINES[i % len(LINES)],
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 4,
    }
