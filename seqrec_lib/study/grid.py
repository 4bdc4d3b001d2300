"""Which runs make up a study: plain data, read from a file.

A grid is a TOML file. ``[config]`` is shared by all runs, ``[datasets.NAME]`` holds what one data
set changes, and each ``[[runs]]`` block multiplies its lists; its other keys win over both::

    seeds = [0, 1, 2, 3, 4]

    [config]
    dim = 64

    [datasets.beauty]
    dropout = 0.5

    [[runs]]
    datasets = ["beauty", "world-series"]
    attentions = ["softmax", "uniform"]

A key of a configuration is an argument of the model, of :func:`~seqrec_lib.fit`, ``weighting``
(settings of the weighting) or ``data`` (arguments of a world).
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

from ..data import DATASETS, global_temporal, leave_one_out, worlds
from ..models import ItemKNN, MarkovChain, Popularity
from ..models.loose import LooseUniformAttention
from ..models.saving import MODELS
from ..models.weighting import WEIGHTINGS
from ..training import LOSSES, fit

__all__ = ["BASELINES", "GRIDS", "NEURAL", "WORLD", "Run", "load_grid", "select"]

BASELINES = {"popularity": Popularity, "markov": MarkovChain, "item-knn": ItemKNN}
NEURAL = {name.lower(): kind for name, kind in MODELS.items()}
ATTENTIONS = (*WEIGHTINGS, LooseUniformAttention.name)
#: Ways of splitting a log, by the names that runs give them.
SPLITS = {
    "leave-one-out": leave_one_out,
    "leave-one-out-refit": partial(leave_one_out, refit=True),
    "global-temporal": global_temporal,
}
WORLD = "world-"  # a data set of this prefix is drawn, not loaded
GRIDS = Path(__file__).parent / "grids"

AXES = ("dataset", "split", "model", "attention", "loss", "seed", "variant")
LISTS = {"datasets": None, "splits": ["leave-one-out"], "models": ["sasrec"], "losses": ["ce"],
         "seeds": [0], "attentions": ["softmax"]}  # fmt: skip
# What a run itself says, or what changes nothing in its result.
NOT_CONFIG = {"self", "model", "num_items", "attention", "seed", "split", "loss", "device",
              "checkpoint", "progress", "on_epoch"}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training run, described by plain data.

    Attributes:
        dataset: a key of ``DATASETS``, or ``world-`` and the name of a world.
        split: a key of ``SPLITS``.
        model: "sasrec", .., or a baseline: "popularity", "markov", "item-knn".
        attention, loss: names; "none" for baselines.
        variant: tells apart runs that differ in their configuration alone.
        config: all other arguments, defaults included.
    """

    dataset: str
    split: str = "leave-one-out"
    model: str = "sasrec"
    attention: str = "softmax"
    loss: str = "ce"
    seed: int = 0
    variant: str = "main"
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def axes(self) -> dict[str, Any]:
        """What names the run, without its configuration."""
        return {name: getattr(self, name) for name in AXES}

    @property
    def key(self) -> str:
        """A name that no other run has: ``beauty.leave-one-out.sasrec.softmax.ce.seed0``."""
        return ".".join(self._told)

    @property
    def _told(self) -> list[str]:
        parts = [self.dataset, self.split, self.model, self.attention, self.loss, self.variant]
        return [*(part for part in parts if part not in ("none", "main")), f"seed{self.seed}"]

    @property
    def path(self) -> Path:
        """Where its record stands in a folder of results."""
        if self.dataset.startswith(WORLD):
            return Path("worlds") / f"{self.key.removeprefix(WORLD)}.json"
        return Path(self.dataset) / f"{self.key.removeprefix(self.dataset + '.')}.json"

    def __str__(self) -> str:
        return " ".join(self._told)


def load_grid(grid: str | Path | Mapping[str, Any]) -> list[Run]:
    """The runs of a grid, in the file's order, seed by seed.

    Args:
        grid: a TOML file, the name of one that comes with the library ("main", "quick"), or the
            same as a dictionary.

    Raises:
        ValueError: something in it is unknown or contradicts itself; the message says where.
        FileNotFoundError: no such file or name.
    """
    where = "the grid"
    if not isinstance(grid, Mapping):
        where, grid = _read(grid)
    unknown = grid.keys() - {"title", "seeds", "config", "datasets", "runs"}
    if unknown or not grid.get("runs"):
        problem = f"unknown {', '.join(sorted(unknown))}" if unknown else "no [[runs]] block"
        raise ValueError(
            f"{where}: {problem}; a grid has seeds, [config], [datasets.NAME] and [[runs]]"
        )
    for dataset in grid.get("datasets", {}):
        try:
            _check_dataset(dataset)
        except ValueError as error:
            raise ValueError(f"{where}, [datasets.{dataset}]: {error}") from None
    runs: dict[str, Run] = {}
    for number, block in enumerate(grid["runs"], 1):
        try:
            for run in _expand(grid, block):
                if runs.setdefault(run.key, run).config != run.config:
                    raise ValueError(
                        f"{run} stands in an earlier block with another "
                        'configuration; give this block a variant = "name"'
                    )
        except ValueError as error:
            raise ValueError(f"{where}, block {number} of [[runs]]: {error}") from None
    return list(runs.values())


def select(runs: Iterable[Run], only: Mapping[str, Iterable[str]]) -> list[Run]:
    """The runs that ``only`` allows, such as ``{"dataset": ["beauty"], "seed": ["0", "1"]}``.

    Raises:
        ValueError: no run has such a property or value.
    """
    runs = list(runs)
    for name, values in only.items():
        if name not in AXES:
            raise ValueError(f"runs have no {name!r}; they have {', '.join(AXES)}")
        values = {str(value) for value in values}
        there = {str(getattr(run, name)) for run in runs}
        if values - there:
            raise ValueError(
                f"no run has {name}={', '.join(sorted(values - there))}; there are "
                f"{', '.join(sorted(there))}"
            )
        runs = [run for run in runs if str(getattr(run, name)) in values]
    return runs


def _read(grid: str | Path) -> tuple[str, dict[str, Any]]:
    path = Path(grid)
    if not path.suffix:
        path = GRIDS / f"{grid}.toml"
    if not path.is_file():
        names = ", ".join(sorted(path.stem for path in GRIDS.glob("*.toml")))
        raise FileNotFoundError(f"no grid {grid}; give a .toml file, or one of {names}")
    try:
        return path.name, tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error


def _expand(grid: Mapping[str, Any], block: Mapping[str, Any]) -> Iterator[Run]:
    """The product of one block's lists."""
    lists = {
        name: block.get(name, grid.get("seeds", default) if name == "seeds" else default)
        for name, default in LISTS.items()
    }
    if not lists["datasets"]:
        raise ValueError('datasets = ["..."] is missing')
    own = {key: value for key, value in block.items() if key not in {*LISTS, "variant"}}
    for dataset, split, model, loss in product(
        lists["datasets"], lists["splits"], lists["models"], lists["losses"]
    ):
        settings = {**grid.get("config", {}), **grid.get("datasets", {}).get(dataset, {}), **own}
        config = complete(model, settings)
        if model in BASELINES:  # nothing is drawn at random, and nothing is attended to
            found = [Run(dataset, split, model, "none", "none")]
        else:
            found = [
                Run(dataset, split, model, attention, loss, seed)
                for seed in lists["seeds"]
                for attention in lists["attentions"]
            ]
        for run in found:
            axes = {**run.axes, "variant": block.get("variant", "main")}
            yield _checked(Run(**axes, config=config))


def complete(model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What ``settings`` say that ``model`` is configured by, with defaults for all they leave open.

    Raises:
        ValueError: the model, or a setting, is unknown.
    """
    if model not in {**NEURAL, **BASELINES}:
        raise ValueError(f"no model {model!r}; there are {', '.join([*NEURAL, *BASELINES])}")
    anywhere = {key for name in {**NEURAL, **BASELINES} for key in defaults(name)}
    if unknown := settings.keys() - anywhere:
        raise ValueError(
            f"unknown setting {', '.join(sorted(unknown))}; there are {', '.join(sorted(anywhere))}"
        )
    known = defaults(model)
    return {key: settings.get(key, default) for key, default in known.items()}


@cache
def defaults(model: str) -> dict[str, Any]:
    """What a run of ``model`` is configured by, with the library's defaults."""
    ours: dict[str, Any] = {"data": {}}
    if model in BASELINES:
        sources = [BASELINES[model]]
    else:
        sources, ours = [NEURAL[model], fit], {**ours, "weighting": {}}
    for source in sources:
        for name, parameter in inspect.signature(source).parameters.items():
            if name not in NOT_CONFIG:
                ours[name] = parameter.default
    return ours


def _check_dataset(name: str) -> None:
    drawn = [f"{WORLD}{world}" for world in worlds.__all__ if world != "Oracle"]
    if name not in (*DATASETS, *drawn):
        raise ValueError(f"no data set {name!r}; there are {', '.join([*DATASETS, *drawn])}")


def _checked(run: Run) -> Run:
    _check_dataset(run.dataset)
    for what, there in (
        ("split", SPLITS),
        ("attention", (*ATTENTIONS, "none")),
        ("loss", (*LOSSES, "none")),
    ):
        if getattr(run, what) not in there:
            raise ValueError(f"no {what} {getattr(run, what)!r}; there are {', '.join(there)}")
    if run.config["data"] and not run.dataset.startswith(WORLD):
        raise ValueError(f"data = .. draws a world, but {run.dataset} is a file")
    if not re.fullmatch(r"[\w.-]+", run.variant):
        raise ValueError(
            f"variant = {run.variant!r} names a file; it may hold letters, digits, '_', '-' and '.'"
        )
    if run.model in NEURAL:
        settings = run.config["weighting"]
        NEURAL[run.model].check_weighting(
            {"name": run.attention, **settings} if settings else run.attention
        )
    return run
