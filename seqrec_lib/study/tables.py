"""What the records show: means, intervals and effects over seeds, beside what others report.

Every function starts from the records of a folder (by default those of :func:`results_dir`) and
from them alone. Runs of a grid that have no record are shown as missing, with the command that
makes them.
"""

from __future__ import annotations

import math
import os
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from ..analysis.effects import equivalence, hedges_g
from ..evaluation.intervals import checked_level
from ..training.history import History
from .grid import AXES, BASELINES, Run, load_grid, select
from .records import DamagedRecord, Store, results, score, values_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "RELIANCE",
    "benchmark",
    "by_length",
    "command",
    "effects",
    "histories",
    "missing",
    "published",
    "published_regimes",
    "regimes",
    "summarize",
    "swapped",
    "with_missing",
]

#: The metrics over which reliance is averaged (Kozaki et al., JSAI 2026).
RELIANCE = ("HR@1", "HR@10", "HR@100", "NDCG@10", "NDCG@100")
SETTING = ["dataset", "split", "model", "attention", "loss", "variant"]
Root = str | os.PathLike | None


# ---- what is there, and what is not --------------------------------------------------------


def missing(
    grid: str | Path | Mapping[str, Any] = "main", root: Root = None, **only: Any
) -> pd.DataFrame:
    """What a grid still lacks: a row for each setting, and the command that makes it.

    Columns: what names a setting, ``seeds`` (those without a record, or with one that is damaged
    or was made with other settings) and ``command``.

    Args:
        only: as for :func:`benchmark`.
    """
    import pandas as pd

    store, runs, rows = Store(root), load_grid(grid), []
    for group in settings_of(runs, only):
        if left := [run for run in group if store.state(run) != "done"]:
            setting = {name: left[0].axes[name] for name in SETTING}
            seeds = [run.seed for run in left]
            rows.append({**setting, "seeds": seeds, "command": command(left, runs, grid, root)})
    return pd.DataFrame(rows, columns=[*SETTING, "seeds", "command"])


def command(
    wanted: Sequence[Run], runs: Sequence[Run], grid: Any = "main", root: Root = None
) -> str:
    """The shortest command that does ``wanted`` of ``runs`` and no others; of a grid that is no
    file GRID.toml stands for one. Where it takes one for each setting, they are joined by "&&"."""
    settings: dict[tuple, list[Run]] = {}
    for run in wanted:
        settings.setdefault(tuple(getattr(run, name) for name in SETTING), []).append(run)
    only = {name: list(dict.fromkeys(str(getattr(run, name)) for run in wanted)) for name in AXES}
    if len(select(runs, only)) > len(wanted) and len(settings) > 1:
        return " && ".join(command(own, runs, grid, root) for own in settings.values())
    for name in AXES[::-1]:  # what tells them apart from no other run is not said
        fewer = {other: values for other, values in only.items() if other != name}
        if len(select(runs, fewer)) == len(wanted):
            only = fewer
    file = "GRID.toml" if isinstance(grid, Mapping) else str(grid)
    words = [] if file == "main" else ["--grid", file]
    words += [] if root is None else ["--results", os.fspath(root)]
    for name, values in only.items():
        words += ["--only", f"{name}={','.join(values)}"]
    return shlex.join(["python", "-m", "seqrec_lib", "study", "run", *words])


# ---- means and intervals -------------------------------------------------------------------


def summarize(
    table: pd.DataFrame,
    metric: str = "NDCG@10",
    by: Sequence[str] = SETTING,
    level: float = 0.95,
) -> pd.DataFrame:
    """Mean, standard deviation and interval of ``metric`` over the seeds of each setting.

    The interval is Student's t for the mean over seeds: of training runs on these data, not of
    users. Columns: ``by``, ``seeds``, ``mean``, ``sd``, ``low``, ``high`` (NaN for one seed).
    """
    import pandas as pd

    rows = []
    for key, group in table.groupby(list(by), sort=False):
        values = group[metric].to_numpy(float)
        rows.append({**dict(zip(by, key, strict=True)), **student_interval(values, level)})
    return pd.DataFrame(rows, columns=[*by, "seeds", "mean", "sd", "low", "high"])


def student_interval(values: np.ndarray, level: float = 0.95) -> dict[str, float]:
    checked_level(level)
    n, mean = len(values), mean_or_nan(values)
    sd = float(values.std(ddof=1)) if n > 1 else math.nan
    half = stats.t.ppf((1 + level) / 2, n - 1) * sd / math.sqrt(n) if n > 1 else math.nan
    return {"seeds": n, "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def benchmark(
    grid: str | Path | Mapping[str, Any] = "main",
    root: Root = None,
    metrics: Sequence[str] = ("HR@10", "NDCG@10"),
    **only: Any,
) -> pd.DataFrame:
    """Who reaches what, data set by data set: mean ± standard deviation over seeds.

    Each metric stands twice: over all items, and ``filtered`` (items already seen left out). The
    last columns are the published band (filtered ``NDCG@10``, where there is one), and the
    command for what is missing.

    Args:
        grid: the runs to show, whether or not they have a record.
        only: keep the runs with these properties, such as ``dataset=["beauty", "ml-1m"]``.

    Returns:
        text cells, indexed by (dataset, split, model).
    """
    import pandas as pd

    store, everything, rows = Store(root), load_grid(grid), {}
    for runs in settings_of(everything, only):
        records = [record for record in map(reader(store), runs) if record is not None]
        done = {record["seed"] for record in records}
        row = {"seeds": f"{len(records)} of {len(runs)}"}
        for metric in metrics:
            for part, suffix in (("test", ""), ("test_filtered", " filtered")):
                values = np.array([record[part][metric] for record in records])
                row[metric + suffix] = _mean_sd(values)
        row["published NDCG@10"] = _band(runs[0])
        left = [run for run in runs if run.seed not in done]
        row["missing"] = command(left, everything, grid, root) if left else ""
        rows[runs[0].dataset, runs[0].split, label(runs[0])] = row
    index = pd.MultiIndex.from_tuples(rows, names=["dataset", "split", "model"]) if rows else None
    return pd.DataFrame(list(rows.values()), index=index)


def label(run: Run | Mapping[str, Any]) -> str:
    """What a table calls a setting: "sasrec softmax", "sasrec uniform (bce)", "markov"."""
    axes = run.axes if isinstance(run, Run) else run
    usual, name = {"loss": "ce", "variant": "main"}, f"{axes['model']} {axes['attention']}"
    if axes["model"] in BASELINES:
        usual, name = {"variant": "main"}, axes["model"]
    told = [axes[what] for what, value in usual.items() if axes[what] != value]
    return name + (f" ({', '.join(told)})" if told else "")


def settings_of(runs: Iterable[Run], only: Mapping[str, Any]) -> list[list[Run]]:
    """Runs that differ in the seed alone, together; only those ``only`` allows.

    Raises:
        ValueError: no run has such a property or value.
    """
    runs, groups = list(runs), {}
    only = {name: list(map(str, values_of(given))) for name, given in only.items()}
    for name, values in only.items():
        select(runs, {name: values})  # a misspelt name is no empty table
    for run in runs:
        if all(str(getattr(run, name)) in values for name, values in only.items()):
            groups.setdefault(tuple(getattr(run, name) for name in SETTING), []).append(run)
    # data set by data set, in the grid's order
    order = {run.dataset: i for i, run in reversed(list(enumerate(runs)))}
    return sorted(groups.values(), key=lambda group: order[group[0].dataset])


def reader(store: Store) -> Callable[[Run], dict[str, Any] | None]:
    """Reads the record of a run; None where there is none, or one of other settings, or damaged."""

    def read(run: Run) -> dict[str, Any] | None:
        try:
            return store.read(run)
        except DamagedRecord:
            return None

    return read


def _mean_sd(values: np.ndarray) -> str:
    if not len(values):
        return "missing"
    return f"{values.mean():.4f}" + (f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else "")


# ---- what others report ----------------------------------------------------------------------


@cache
def published_data() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "published.toml").read_text(encoding="utf-8"))


def published() -> pd.DataFrame:
    """Published figures of strong models, as low and high ends of bands, with their sources.

    They rank all items and mostly leave out those already seen.
    """
    import pandas as pd

    rows = [
        {
            "dataset": figure["dataset"],
            "split": figure.get("split", "leave-one-out"),
            "model": figure["model"],
            "loss": figure["loss"],
            "metric": metric,
            "low": figure[metric][0],
            "high": figure[metric][1],
            "source": figure["source"],
        }
        for figure in published_data()["figures"]
        for metric in ("HR@10", "NDCG@10")
    ]
    return pd.DataFrame(rows)


def _band(run: Run) -> str:
    if run.attention not in ("softmax", "wasserstein") or run.variant != "main":
        return ""
    bands = published()
    for name, value in {**run.axes, "metric": "NDCG@10"}.items():
        if name in bands:
            bands = bands[bands[name] == value]
    ends = [f"{end:.4f}" for end in (*bands["low"], *bands["high"])]
    return " to ".join(dict.fromkeys(ends))


# ---- effects -------------------------------------------------------------------------------


def effects(
    table: pd.DataFrame | None = None,
    a: str = "softmax",
    b: str = "uniform",
    metric: str = "NDCG@10",
    margin: float = 0.05,
    level: float = 0.95,
) -> pd.DataFrame:
    """Does training with weighting ``a`` beat training with ``b``?

    Args:
        table: records, as from :func:`results`; those of all data sets by default.
        margin: the smallest difference that matters, as a share of the mean of ``a``.

    Returns:
        a row for each data set, split, model, loss and variant with a record of either: ``seeds``
        (the smaller number of the two), ``a``, ``b`` (means), ``difference``, its 90 % interval
        ``low``, ``high``, Hedges' ``g`` and its interval ``g_low``, ``g_high``, and the
        ``verdict`` of the equivalence test: "equivalent", "different" or "undecided"; "too few
        seeds" with less than two of each, "no spread" where there is nothing to measure a
        difference by.
    """
    import pandas as pd

    checked_margin(margin)
    checked_level(level)
    rows = []
    for setting, x, y in _pairs(table, a, b, metric):
        row: dict[str, Any] = {
            **setting,
            "seeds": min(len(x), len(y)),
            a: mean_or_nan(x),
            b: mean_or_nan(y),
        }
        try:
            g, test = hedges_g(x, y, level=level), equivalence(x, y, margin, relative=True)
        except ValueError:  # besides too few: every seed the same, or no hit at all
            verdict = "too few seeds" if row["seeds"] < 2 else "no spread"
            row |= {"difference": row[a] - row[b], "verdict": verdict}
        else:
            row |= {
                "difference": test.difference,
                "low": test.low,
                "high": test.high,
                "g": g.g,
                "g_low": g.low,
                "g_high": g.high,
                "verdict": test.verdict,
            }
        rows.append(row)
    columns = [
        "dataset",
        "split",
        "model",
        "loss",
        "variant",
        "seeds",
        a,
        b,
        "difference",
        "low",
        "high",
        "g",
        "g_low",
        "g_high",
        "verdict",
    ]
    return pd.DataFrame(rows, columns=columns)


def regimes(
    table: pd.DataFrame | None = None,
    statistic: str = "attn_res_ln",
    part: str = "",
    level: float = 0.95,
) -> pd.DataFrame:
    """Where each data set stands: how much its softmax models mix, how much they rely on weights.

    Mixing is the mean ratio over layers and positions, with Student's interval over seeds.
    Reliance is Hedges' g of softmax over uniform training, averaged over ``RELIANCE``; its
    interval averages the five intervals, which is what it would be if the metrics moved
    together, and too wide otherwise.

    Args:
        statistic: a name in a record's ``mixing``, such as "attn_res_ln_last".
        part: "test" or "test_filtered"; by default the :func:`ruler` of each run.

    Returns:
        a row for each data set, split, model and loss with a record of variant "main": ``seeds``
        (the smaller number of the two), ``mixing``, ``mixing_low``, ``mixing_high``, ``g``,
        ``g_low``, ``g_high`` and ``verdict`` (of :func:`effects`, for NDCG@10).
    """
    import pandas as pd

    table = _main(table)
    rows = []
    part = part and part + " "
    verdicts = effects(table, metric=f"{part}NDCG@10", level=level)
    for row in verdicts.itertuples():
        here = table[
            (table["dataset"] == row.dataset)
            & (table["split"] == row.split)
            & (table["model"] == row.model)
            & (table["loss"] == row.loss)
        ]
        softmax = here[here["attention"] == "softmax"]
        mixing = student_interval(softmax[f"mixing {statistic}"].to_numpy(float), level)
        each = pd.concat(effects(here, metric=part + name, level=level) for name in RELIANCE)
        g, low, high = each[["g", "g_low", "g_high"]].astype(float).mean(skipna=False)
        rows.append(
            {
                "dataset": row.dataset,
                "split": row.split,
                "model": row.model,
                "loss": row.loss,
                "seeds": row.seeds,
                "mixing": mixing["mean"],
                "mixing_low": mixing["low"],
                "mixing_high": mixing["high"],
                "g": g,
                "g_low": low,
                "g_high": high,
                "verdict": row.verdict,
            }
        )
    columns = [
        "dataset",
        "split",
        "model",
        "loss",
        "seeds",
        "mixing",
        "mixing_low",
        "mixing_high",
        "g",
        "g_low",
        "g_high",
        "verdict",
    ]
    return pd.DataFrame(rows, columns=columns)


def with_missing(
    found: pd.DataFrame,
    a: str = "softmax",
    b: str = "uniform",
    grid: str | Path | Mapping[str, Any] = "main",
    root: Root = None,
    **only: Any,
) -> pd.DataFrame:
    """``found``, from :func:`effects` or :func:`regimes`, beside what the grid has to compare.

    Args:
        a, b: the weightings that ``found`` compares.
        only: as for :func:`benchmark`.

    Returns:
        a row for each setting of which the grid has both, in the columns of ``found``: ``seeds``
        says "3 of 5", ``missing`` is the command for runs without a record, and the verdict is
        "runs missing" where these leave too few seeds.
    """
    import pandas as pd

    store, runs, rows = Store(root), load_grid(grid), []
    by = [name for name in SETTING if name in found]
    pairs: dict[tuple, dict[str, list[Run]]] = {}
    for group in settings_of(runs, only):
        run = group[0]
        if "variant" in by or run.variant == "main":
            place = tuple(getattr(run, name) for name in by)
            pairs.setdefault(place, {})[run.attention] = group
    for place, own in pairs.items():
        if own.keys() >= {a, b}:
            left = [run for run in own[a] + own[b] if store.state(run) != "done"]
            rows.append({
                **dict(zip(by, place, strict=True)), "planned": min(len(own[a]), len(own[b])),
                "missing": command(left, runs, grid, root) if left else "",
            })  # fmt: skip
    planned = pd.DataFrame(rows, columns=[*by, "planned", "missing"])
    shown = planned.merge(found, how="left", on=by)
    done = shown["seeds"].astype(float).fillna(0).astype(int)
    lacking = (shown["missing"] != "") & (done < shown["planned"].clip(upper=2))
    shown["verdict"] = shown["verdict"].mask(lacking, "runs missing")
    shown["seeds"] = [f"{n} of {m}" for n, m in zip(done, shown["planned"], strict=True)]
    return shown[[*found.columns, "missing"]]


def published_regimes(
    level: float = 0.95, metrics: Sequence[str] = RELIANCE, commented_out: bool = False
) -> pd.DataFrame:
    """The published points of :func:`regimes`, and the intervals that their five seeds imply.

    The source gives no interval. That of Hedges' g follows from g and the number of seeds alone;
    that of the mixing ratio does not and is left out.

    Args:
        metrics: over which g is averaged; its interval averages theirs, as in :func:`regimes`.
        commented_out: with the points that the source's script holds and does not draw.
    """
    import pandas as pd

    source = published_data()["regimes"]
    points = source["points"] | (source["commented_out"] if commented_out else {})
    n = source["seeds"]
    shape = stats.norm.ppf((np.arange(n) + 0.5) / n)
    shape /= shape.std(ddof=1)  # any n values of spread 1 will do
    rows = []
    for dataset, point in points.items():
        per_d = hedges_g(shape + 1, shape).g  # g is so many times d
        found = dict(zip(source["metrics"], point["g"], strict=True))
        values = [found[name] for name in metrics]
        ends = [hedges_g(shape + g / per_d, shape, level=level) for g in values]
        rows.append(
            {
                "dataset": dataset,
                "seeds": n,
                "mixing": point["mixing"],
                "g": np.mean(values),
                "g_low": np.mean([e.low for e in ends]),
                "g_high": np.mean([e.high for e in ends]),
                "source": source["source"],
            }
        )
    return pd.DataFrame(rows)


def _main(table: pd.DataFrame | None) -> pd.DataFrame:
    table = results() if table is None else table
    return table[table["variant"] == "main"]


def _pairs(table: pd.DataFrame | None, a: str, b: str, metric: str):
    """(setting, values of a, values of b) for each setting that has a record of either."""
    table = results() if table is None else table
    by = ["dataset", "split", "model", "loss", "variant"]
    both = table[table["attention"].isin([a, b])]
    for key, group in both.groupby(by, sort=False):
        group = group.sort_values("seed")
        known = group[group[metric].notna()]  # older records may lack a metric
        x, y = (known.loc[known["attention"] == name, metric].to_numpy(float) for name in (a, b))
        yield dict(zip(by, key, strict=True)), x, y


def checked_margin(margin: float) -> None:
    """Raise ValueError unless it is positive: a test would take that for a lack of spread."""
    if not margin > 0:
        raise ValueError(f"the margin must be positive, got {margin}")


def mean_or_nan(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def swapped(table: pd.DataFrame | None = None, metric: str = "NDCG@10") -> pd.DataFrame:
    """What trained models reach with other weights swapped in: a row for each run and swap.

    Columns: those that name a run, ``swap`` ("" for the model as it was trained), ``value``, the
    share of the model's own value that is ``lost`` (below 0 it is a gain; NaN where there is
    nothing to lose), and the ``curve`` of the run. A record has the swaps that were known when it
    was made.
    """
    import pandas as pd

    table = results() if table is None else table
    rows = [
        {**{column: row[column] for column in (*SETTING, "seed")}, "swap": swap, "value": value}
        | {"lost": 1 - value / row[metric] if row[metric] else math.nan, "curve": row["curve"]}
        for _, row in table.iterrows()
        for swap, value in [
            ("", row[metric]),
            *((swap, score(row, metric, found)) for swap, found in row["swapped"].items()),
        ]
    ]
    return pd.DataFrame(rows, columns=[*SETTING, "seed", "swap", "value", "lost", "curve"])


# ---- inside the runs -------------------------------------------------------------------------


def by_length(table: pd.DataFrame | None = None, metric: str = "NDCG@10") -> pd.DataFrame:
    """A metric by the length of the users' histories: a row for each run and group.

    Groups of users who all fill the model's window are one, such as "50+": it sees no more of them.

    Columns: those that name a run, ``length`` (an ordered category such as "10-19"), ``users``
    and ``value``.
    """
    import pandas as pd

    table = results() if table is None else table
    rows = [
        {
            **{name: row[name] for name in (*SETTING, "seed")},
            "length": length,
            "users": group["users"],
            "value": score(row, metric, group),
        }
        for _, row in table.iterrows()
        for length, group in visible_lengths(row).items()
    ]
    frame = pd.DataFrame(rows, columns=[*SETTING, "seed", "length", "users", "value"])
    order = sorted(frame["length"].unique(), key=shortest)
    return frame.astype({"length": pd.CategoricalDtype(order, ordered=True)})


def shortest(length: str) -> int:
    """The lower end of a group such as "10-19" or "200+"."""
    return int(length.strip("+").split("-")[0])


def visible_lengths(record: Mapping[str, Any]) -> dict[str, Any]:
    """``by_length`` of a record, its groups beyond the model's window as one."""
    limit = record["config"].get("max_len") or math.inf
    groups = {name: own for name, own in record["by_length"].items() if shortest(name) < limit}
    full = {name: own for name, own in record["by_length"].items() if name not in groups}
    if full:
        users = [own["users"] for own in full.values()]
        groups[f"{min(map(shortest, full))}+"] = {"users": sum(users)} | {
            part: {name: np.average([own[part][name] for own in full.values()], weights=users)
                   for name in next(iter(full.values()))[part]}
            for part in ("test", "test_filtered")
        }  # fmt: skip
    return groups


def histories(table: pd.DataFrame) -> dict[str, History]:
    """The learning curves of records, by label and seed, for :func:`plotting.learning_curves`."""
    found, several = {}, table["split"].nunique() > 1
    for row in table.to_dict("records"):
        if not row["curve"]:
            continue
        columns = {"epoch": range(1, row["epochs"] + 1), **row["curve"]}
        entries = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        history = History(entries, row["config"]["monitor"], row["stopped"])
        where = f"{row['dataset']} ({row['split']})" if several else row["dataset"]
        found[f"{where} {label(row)}, seed {row['seed']}"] = history
    return found
