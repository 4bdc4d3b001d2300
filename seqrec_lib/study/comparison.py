"""Does one way of making weights gain anything over another, how much, and how surely?

Differences over seeds between two settings of a grid, by groups or by pairs, and what such a claim
has to be weighed with: runs that did not train steadily, published gains, many tests at once, the
smallest gain that so few seeds can show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import optimize, stats

from ..analysis.effects import checked_samples, equivalence, paired_difference
from ..evaluation.intervals import checked_level
from .grid import Run, load_grid
from .records import Store, ruler, score
from .tables import (
    SETTING,
    Root,
    checked_margin,
    command,
    mean_or_nan,
    published_data,
    reader,
    settings_of,
    visible_lengths,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Change",
    "chosen",
    "detectable",
    "epochs_to",
    "gains",
    "holm",
    "largest_rise",
    "paired",
    "published_gains",
    "relative_difference",
]

#: A weighting by its name, or one with a variant other than "main".
Setting = str | tuple[str, str]

#: Fewer seeds than these give no verdict.
MIN_SEEDS = 3

#: A run whose training loss once rose by more than this share of itself did not settle (chapter 8
#: shows how far runs without refinement stay below it). It concerns cross-entropy over all items:
#: a loss over sampled negatives trembles with the sample.
STEADY = 0.005


# ---- the measure -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A ratio of means less 1, its interval, and the p-value of "the means are equal"."""

    change: float
    low: float
    high: float
    level: float
    p: float

    def __str__(self) -> str:
        return (
            f"{self.change:+.1%}, {self.level:.0%} interval [{self.low:+.1%}, {self.high:+.1%}], "
            f"p = {self.p:.2g}"
        )


def relative_difference(new, reference, *, level: float = 0.95) -> Change:
    """By which share of ``reference`` does the mean of ``new`` exceed the mean of ``reference``?

    Both means are uncertain, so both enter: the logarithm of their ratio is taken as normal with
    variance s^2 / (n m^2) from each of the two (n values, mean m, standard deviation s: the delta
    method), and its degrees of freedom are Welch and Satterthwaite's.

    Args:
        new, reference: (n,), (m,) one positive value per seed.

    Raises:
        ValueError: fewer than two values, no spread at all, or a mean that is not positive.
    """
    checked_level(level)
    samples = checked_samples(new, reference, paired=False)
    means = [x.mean() for x in samples]
    if min(means) <= 0:
        raise ValueError(f"a ratio needs positive means, got {means[0]:.3g} and {means[1]:.3g}")
    parts = [x.var(ddof=1) / len(x) / x.mean() ** 2 for x in samples]
    freedom = sum(parts) ** 2 / sum(
        v**2 / (len(x) - 1) for v, x in zip(parts, samples, strict=True)
    )
    log, error = math.log(means[0] / means[1]), math.sqrt(sum(parts))
    half = stats.t.ppf((1 + level) / 2, freedom) * error
    low, change, high = (math.expm1(x) for x in (log - half, log, log + half))
    return Change(change, low, high, level, float(2 * stats.t.sf(abs(log) / error, freedom)))


def holm(p) -> np.ndarray:
    """Holm's p-values: reject those below alpha, and one false rejection or more among *all* of
    the tests is as rare as alpha. NaN stays NaN and counts for no test (Holm 1979)."""
    p = np.asarray(p, dtype=float)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    adjusted = p.copy()
    scaled = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted


def detectable(spread: float, seeds: int, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest true difference that ``seeds`` runs against as many find so often as ``power``.

    Found means: Student's t test at ``1 - level`` is significant, in the right direction.

    Args:
        spread: standard deviation over seeds, relative or not; the answer is in its unit.

    Raises:
        ValueError: a spread takes two seeds or more; or no test is found so often, or so rarely.
    """
    if seeds < 2:
        raise ValueError(f"a spread takes two seeds or more, got {seeds}")
    checked_level(level)
    if not (1 - level) / 2 < power < 1:
        raise ValueError(f"power must lie between {(1 - level) / 2:g} and 1, got {power}")
    freedom = 2 * seeds - 2
    critical = stats.t.ppf((1 + level) / 2, freedom)
    shift = optimize.brentq(lambda x: stats.nct.sf(critical, freedom, x) - power, 0, 10 * critical)
    return spread * shift * math.sqrt(2 / seeds)


# ---- from the records --------------------------------------------------------------------------


def gains(
    new: Setting = "awrsr-additive",
    reference: Setting = "softmax",
    metric: str = "NDCG@10",
    margin: float = 0.05,
    level: float = 0.95,
    min_users: int | None = None,
    min_seeds: int = MIN_SEEDS,
    steady: float | None = STEADY,
    grid: str | Path | Mapping[str, Any] = "main",
    root: Root = None,
    **only: Any,
) -> pd.DataFrame:
    """The relative gain of ``new`` over ``reference``, wherever a grid has both.

    Args:
        new, reference: a weighting, or (weighting, variant).
        metric: such as "NDCG@10", by the :func:`ruler` of the runs, or "test_filtered NDCG@10".
        margin: the smallest gain or loss that matters, as a share of the reference.
        min_users: judge users with histories of each length apart, in groups of so many or more
            (those who surely fill the model's window are one group); None judges all as one.
        min_seeds: from fewer there is neither interval nor verdict.
        steady: a run whose training loss once rose by more (:func:`largest_rise`) did not settle;
            None asks of none. Runs on sampled negatives are not asked: there a loss trembles.
        only: keep the runs with these properties, such as ``dataset=["beauty", "ml-1m"]``.

    Returns:
        a row for each data set, split, model and loss (and length): ``new``, ``reference``
        (labels), ``metric``, ``length`` (such as "10-19", or "all"), ``users``, ``seeds`` (the
        smaller number), ``mean_reference``, ``mean_new``, ``change`` with ``low``, ``high``, ``p``
        (:func:`relative_difference`), the ``verdict``, and ``missing``, the command for runs
        without a record. Verdicts: "equivalent" (within the margin, by two one-sided tests), else
        "helps" or "hurts" (an interval on one side of 0), else "undecided". Before all of these,
        "runs missing" where one of the two has none, "too few seeds", when ``change`` stands
        without interval or p, and "does not settle" where half of the runs or more of one did
        not: a mean over failed and good runs is neither.
    """
    import pandas as pd

    checked_margin(margin)
    checked_level(level)
    rows = []
    for setting, *sides, missing in _both(new, reference, grid, root, only):
        curves = [[record["curve"] for record in side] for side in sides]
        restless = any(_restless(own, steady, setting["loss"]) for own in curves)
        groups = [[(record, _groups(record, min_users)) for record in side] for side in sides]
        examples = [own for side in groups for _, own in side] or [_groups(None, None)]
        for length, example in examples[0].items():
            x, y = (
                [score(record, metric, own[length]) for record, own in side if length in own]
                for side in groups
            )
            rows.append({
                **setting, "metric": metric, "length": length, "users": example["users"],
                "seeds": min(len(x), len(y)),
                "mean_reference": mean_or_nan(y), "mean_new": mean_or_nan(x),
                **_judge(x, y, margin, level, min_seeds, restless), "missing": missing,
            })  # fmt: skip
    columns = ["dataset", "split", "model", "loss", "new", "reference", "metric", "length",
               "users", "seeds", "mean_reference", "mean_new", "change", "low", "high", "p",
               "verdict", "missing"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def paired(
    table: pd.DataFrame,
    column: str,
    against: str = "softmax",
    by: str = "attention",
    *,
    margin: float,
    relative: bool = False,
    level: float = 0.95,
    min_seeds: int = MIN_SEEDS,
    steady: float | None = STEADY,
) -> pd.DataFrame:
    """``column`` of each weighting less that of ``against``, seed by seed.

    Models that differ in weighting alone start from the same values and meet the same data, so
    the runs of one seed are pairs.

    Args:
        table: with ``column``, a row a run, as from :func:`results`.
        by: the column that names what is compared.
        margin: the smallest difference that matters, in units of ``column``.
        relative: read ``margin`` as a share of the mean of ``against``.
        min_seeds, steady: as in :func:`gains`; a table without ``curve`` is not asked whether its
            runs settled.

    Returns:
        a row for each setting that has ``against``, and each value of ``by`` other than that:
        ``seeds`` (the pairs), ``mean``, ``mean_against``, ``difference`` with its Student
        interval ``low``, ``high``, its ``p``, and the ``verdict``: "same" (within the margin, by
        two one-sided tests), else "more" or "less" (an interval on one side of 0), else
        "undecided"; "too few seeds" and "does not settle" as in :func:`gains`.
    """
    import pandas as pd

    checked_margin(margin)
    checked_level(level)
    setting, rows = [name for name in SETTING if name != by], []
    for key, group in table.groupby(setting, sort=False):
        wide = group.pivot(index="seed", columns=by, values=column)
        sides = group.groupby(by) if "curve" in group else ()
        restless = {
            name for name, own in sides if _restless(own["curve"], steady, own["loss"].iloc[0])
        }
        for name in dict.fromkeys(group[by]) if against in wide else ():
            if name != against:
                pairs = wide[[name, against]].dropna().to_numpy(float)
                scale = abs(mean_or_nan(pairs[:, 1])) if relative else 1.0
                compared = _compare_pairs(*pairs.T, margin * scale, level, min_seeds)
                if {name, against} & restless and compared["verdict"] != "too few seeds":
                    compared["verdict"] = "does not settle"
                rows.append({**dict(zip(setting, key, strict=True)), by: name, **compared})
    columns = ["seeds", "mean", "mean_against", "difference", "low", "high", "p", "verdict"]
    return pd.DataFrame(rows, columns=[*setting, by, *columns])


def epochs_to(table: pd.DataFrame, share: float = 0.95, reference: str = "softmax") -> pd.DataFrame:
    """After how many epochs does each weighting reach ``share`` of the reference's best?

    The goal is the same for all weightings of a setting: ``share`` of what the reference reaches
    on validation at its best epoch, averaged over its seeds. Measured against one's own best, a
    model that learns little would be quick.

    Args:
        table: records, as from :func:`results`.

    Returns:
        a row for each setting whose reference has records: ``goal``, ``seeds``, ``reached`` (how
        many of them get there), ``epochs`` (of each seed; one that never gets there counts as
        infinitely many) and their ``mean``, ``fewest`` and ``most``. So few whole numbers make
        no sensible interval.
    """
    import pandas as pd

    by = ["dataset", "split", "model", "loss", "variant"]
    curves = [
        row["curve"].get(row["config"].get("monitor"), []) for row in table.to_dict("records")
    ]
    table = table.assign(scores=curves)[np.array([bool(curve) for curve in curves], dtype=bool)]
    rows = []
    for key, group in table.groupby(by, sort=False):
        best = [max(curve) for curve in group.loc[group["attention"] == reference, "scores"]]
        if not best:
            continue
        goal = share * np.mean(best)
        for attention, own in group.groupby("attention", sort=False):
            epochs = np.array([_first(curve, goal) for curve in own["scores"]])
            rows.append({
                **dict(zip(by, key, strict=True)), "attention": attention, "goal": goal,
                "seeds": len(epochs), "reached": int(np.isfinite(epochs).sum()),
                "epochs": epochs.tolist(), "mean": epochs.mean(), "fewest": epochs.min(),
                "most": epochs.max(),
            })  # fmt: skip
    columns = [*by, "attention", "goal", "seeds", "reached", "epochs", "mean", "fewest", "most"]
    return pd.DataFrame(rows, columns=columns)


def largest_rise(table: pd.DataFrame, share: float = 0.5) -> pd.Series:
    """By which share of itself a training loss rose at most, from one epoch to the next.

    Looked for in the first ``share`` of the epochs: at the bottom every loss trembles a little, and
    a training that does not settle shows it on the way down.

    Args:
        table: records, as from :func:`results`.

    Returns:
        a number for each run, by the index of ``table``; 0 where the loss never rose.
    """
    import pandas as pd

    return pd.Series([_rise(curve, share) for curve in table["curve"]], table.index, dtype=float)


def chosen(
    candidates: Sequence[str],
    metric: str = "NDCG@10",
    settings: Sequence[str] = ("dropout",),
    grid: str | Path | Mapping[str, Any] = "main",
    root: Root = None,
    **only: Any,
) -> pd.DataFrame:
    """For each weighting the variant that is best on validation, and what it reaches on test.

    Candidates are compared on the seeds they share, so that none wins by having more of them, and
    by the :func:`ruler` their epochs were chosen by. A refit validates on nothing, and is left out.

    Args:
        candidates: variants to choose among, such as ``["main", "dropout-0.2"]``.
        settings: what they differ in, keys of their configurations.

    Returns:
        a row for each data set, split, model, attention and loss: ``tried`` (candidates with
        records, of those the grid has), ``variant`` (the choice, "" where they share no seed) and
        its values of ``settings``, ``seeds``, ``validation``, ``test`` (means over its seeds, by
        that ruler) and ``missing``, the command for the rest.
    """
    import pandas as pd

    store, runs, rows = Store(root), load_grid(grid), {}
    read = reader(store)
    groups: dict[tuple, dict[str, list[Run]]] = {}
    for group in settings_of(runs, only):
        run = group[0]
        if run.variant not in candidates or not run.config.keys() >= {*settings}:
            continue  # what counts pairs has no dropout
        if run.split.endswith("-refit"):
            continue  # no validation, no choice
        key = (run.dataset, run.split, run.model, run.attention, run.loss)
        groups.setdefault(key, {})[run.variant] = group
    for key, variants in groups.items():
        part = ruler({"dataset": key[0], "config": next(iter(variants.values()))[0].config})
        validation = part.replace("test", "validation")
        found = {name: _by_seed(map(read, group)) for name, group in variants.items()}
        left = [run for name, group in variants.items() for run in group
                if run.seed not in found[name]]  # fmt: skip
        found = {name: records for name, records in found.items() if records}
        shared = set.intersection(*map(set, found.values())) if found else set()
        reached = {
            name: np.mean([records[seed][validation][metric] for seed in shared])
            for name, records in found.items()
            if shared
        }
        best = max(reached, key=reached.get) if reached else ""
        records = list(found.get(best, {}).values())
        rows[key] = {
            "tried": f"{len(found)} of {len(variants)}", "variant": best,
            **{name: variants[best][0].config[name] if best else math.nan for name in settings},
            "seeds": len(records),
            "validation": mean_or_nan([record[validation][metric] for record in records]),
            "test": mean_or_nan([score(record, metric) for record in records]),
            "missing": command(left, runs, grid, root) if left else "",
        }  # fmt: skip
    names = ["dataset", "split", "model", "attention", "loss"]
    index = pd.MultiIndex.from_tuples(rows, names=names) if rows else None
    columns = ["tried", "variant", *settings, "seeds", "validation", "test", "missing"]
    return pd.DataFrame(list(rows.values()), columns=columns, index=index)


def published_gains() -> pd.DataFrame:
    """What the paper reports: relative gains, without interval; its Recall@1 is our HR@1.

    Columns: ``dataset``, ``metric``, ``change``, ``source``.
    """
    import pandas as pd

    return pd.DataFrame(published_data()["gains"])


def _both(new: Setting, reference: Setting, grid: Any, root: Root, only: Mapping[str, Any]):
    """(setting, records of new, records of reference, command for the rest), where both stand."""
    store, runs = Store(root), load_grid(grid)
    sides = [(s, "main") if isinstance(s, str) else tuple(s) for s in (new, reference)]
    groups: dict[tuple, dict[tuple, list[Run]]] = {}
    for group in settings_of(runs, only):
        run = group[0]
        place = (run.dataset, run.split, run.model, run.loss)
        groups.setdefault(place, {})[run.attention, run.variant] = group
    names = [name if variant == "main" else f"{name} ({variant})" for name, variant in sides]
    for place, own in groups.items():
        if not all(side in own for side in sides):
            continue
        records = [[r for r in map(reader(store), own[side]) if r is not None] for side in sides]
        left = [
            run
            for side, found in zip(sides, records, strict=True)
            for run in own[side]
            if run.seed not in {record["seed"] for record in found}
        ]
        setting = dict(zip(("dataset", "split", "model", "loss"), place, strict=True))
        setting |= {"new": names[0], "reference": names[1]}
        yield setting, *records, command(left, runs, grid, root) if left else ""


def _groups(record: Mapping[str, Any] | None, min_users: int | None) -> dict[str, Any]:
    """The groups of test users that are judged apart, with their metrics as the record has them."""
    record = record or {"users": {"test": 0}, "by_length": {}, "config": {}}
    if min_users is None:
        return {"all": {**record, "users": record["users"]["test"]}}
    groups = visible_lengths(record).items()
    return {length: group for length, group in groups if group["users"] >= min_users}


def _judge(
    x: list[float],
    y: list[float],
    margin: float,
    level: float = 0.95,
    min_seeds: int = MIN_SEEDS,
    restless: bool = False,
) -> dict[str, Any]:
    """The change of ``x`` over ``y`` and the verdict on it."""
    nothing = {"low": math.nan, "high": math.nan, "p": math.nan}
    bare = {"change": mean_or_nan(x) / mean_or_nan(y) - 1 if any(y) else math.nan, **nothing}
    if not (x and y):
        return {**bare, "verdict": "runs missing"}
    if min(len(x), len(y)) < max(min_seeds, 2):
        return {**bare, "verdict": "too few seeds"}
    try:
        found = relative_difference(x, y, level=level)
    except ValueError:  # every seed the same, or no hit at all
        return {**bare, "verdict": "undecided"}
    if restless:
        verdict = "does not settle"
    elif equivalence(y, x, margin, relative=True).equivalent:
        verdict = "equivalent"
    else:
        verdict = "helps" if found.low > 0 else "hurts" if found.high < 0 else "undecided"
    return {"change": found.change, "low": found.low, "high": found.high, "p": found.p,
            "verdict": verdict}  # fmt: skip


def _compare_pairs(
    x: np.ndarray, y: np.ndarray, margin: float, level: float, min_seeds: int
) -> dict[str, Any]:
    found = {"seeds": len(x), "mean": mean_or_nan(x), "mean_against": mean_or_nan(y)}
    if len(x) < max(min_seeds, 2):
        return found | {"difference": mean_or_nan(x) - mean_or_nan(y), "verdict": "too few seeds"}
    try:
        difference = paired_difference(x, y, level=level)
        same = equivalence(x, y, margin, paired=True).equivalent
    except ValueError:  # every pair differs alike
        return found | {"difference": mean_or_nan(x - y), "verdict": "undecided"}
    low, high = difference.low, difference.high
    verdict = "same" if same else "more" if low > 0 else "less" if high < 0 else "undecided"
    return found | {
        "difference": difference.mean, "low": low, "high": high, "p": difference.p,
        "verdict": verdict,
    }  # fmt: skip


def _rise(curve: Mapping[str, Sequence[float]], share: float = 0.5) -> float:
    losses = np.asarray(curve.get("loss", []), dtype=float)
    losses = losses[: math.ceil(share * len(losses))]
    return float(np.max(np.diff(losses) / losses[:-1], initial=0.0))


def _restless(
    curves: Iterable[Mapping[str, Sequence[float]]], steady: float | None, loss: str
) -> bool:
    """Did half of the runs or more not settle?"""
    if steady is None or loss != "ce":
        return False
    rises = np.array([_rise(curve) for curve in curves])
    return bool(len(rises)) and np.mean(rises > steady) >= 0.5


def _by_seed(records) -> dict[int, dict[str, Any]]:
    return {record["seed"]: record for record in records if record is not None}


def _first(curve: Sequence[float], goal: float) -> float:
    return next((epoch for epoch, score in enumerate(curve, 1) if score >= goal), math.inf)
