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
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
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
from ..training.recipe import Recipe, check_kinds

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
DRAWN = [f"{WORLD}{world}" for world in worlds.__all__ if world != "Oracle"]
#: What a list of names may hold, and what messages call it.
NAMES = {
    "datasets": ("data set", (*DATASETS, *DRAWN)),
    "splits": ("split", tuple(SPLITS)),
    "models": ("model", (*NEURAL, *BASELINES)),
    "attentions": ("attention", ATTENTIONS),
    "losses": ("loss", tuple(LOSSES)),
}
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
    def plain_config(self) -> dict[str, Any]:
        """The configuration as a record has it: tuples are lists."""
        return json.loads(json.dumps(dict(self.config)))

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
        grid: a TOML file, the name of one that comes with the library ("main", "quick",
            "tuning"), or the same as a dictionary.

    Raises:
        ValueError: it is no TOML in UTF-8, or something in it is unknown, makes no sense or
            contradicts itself; the message says where.
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
    try:
        _check_shared(grid)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
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
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8, as TOML must be: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error


def _check_shared(grid: Mapping[str, Any]) -> None:
    """Raise ValueError where something outside the blocks is not what it should be."""
    if "seeds" in grid:
        _check_list("seeds", grid["seeds"])
    config, datasets = grid.get("config", {}), grid.get("datasets", {})
    _check_table("[config]", config)
    _check_table("[datasets]", datasets)
    for name, settings in datasets.items():
        try:
            _check_name("datasets", name)
        except ValueError as error:
            raise ValueError(f"[datasets.{name}]: {error}") from None
        _check_table(f"[datasets.{name}]", settings)
    if not _is_list(grid["runs"]):
        raise ValueError(
            f"runs must be a list of blocks, each headed by [[runs]], got {grid['runs']!r}"
        )


def _expand(grid: Mapping[str, Any], block: Mapping[str, Any]) -> Iterator[Run]:
    """The product of one block's lists, checked."""
    _check_table("a block", block)
    variant = block.get("variant", "main")
    if not (isinstance(variant, str) and re.fullmatch(r"[\w.-]+", variant)):
        raise ValueError(
            f"variant = {variant!r} names a file; it must be a string of letters, digits, '_', "
            "'-' and '.'"
        )
    if variant == "none":  # which a run's name leaves out, as it does "main"
        raise ValueError('variant = "none" would name the runs of main; choose another name')
    lists = {
        name: block.get(name, grid.get("seeds", default) if name == "seeds" else default)
        for name, default in LISTS.items()
    }
    if not lists["datasets"]:
        raise ValueError('datasets = ["..."] is missing')
    for name, values in lists.items():
        _check_list(name, values)
    own = {key: value for key, value in block.items() if key not in {*LISTS, "variant"}}
    taken = {key for model in lists["models"] for key in defaults(model)}
    anywhere = {key for model in (*NEURAL, *BASELINES) for key in defaults(model)}
    if idle := own.keys() & anywhere - taken:
        models = ", ".join(lists["models"])
        raise ValueError(f"{', '.join(sorted(idle))} changes nothing in {models}")
    for dataset, split, model, loss in product(
        lists["datasets"], lists["splits"], lists["models"], lists["losses"]
    ):
        settings = {**grid.get("config", {}), **grid.get("datasets", {}).get(dataset, {}), **own}
        config = complete(model, settings)
        _check_data(dataset, config["data"])
        named = partial(Run, dataset, split, model, variant=variant, config=config)
        if model in BASELINES:  # nothing is drawn at random, and nothing is attended to
            check_kinds(BASELINES[model], arguments(BASELINES[model], config))
            yield named("none", "none")
            continue
        _check_training(model, loss, config)
        for attention in lists["attentions"]:
            _check_weighting(model, attention, config["weighting"])
        for seed, attention in product(lists["seeds"], lists["attentions"]):
            yield named(attention, loss, seed)


def complete(model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What ``settings`` say that ``model`` is configured by, with defaults for all they leave open.

    Raises:
        ValueError: a setting is unknown.
    """
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


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _check_list(name: str, values: Any) -> None:
    """Raise ValueError where ``values`` cannot be one of a block's ``LISTS``."""
    if not _is_list(values) or not values:
        raise ValueError(f"{name} must be a list of one or more, got {values!r}")
    for value in values:
        if name != "seeds":
            _check_name(name, value)
        elif not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"seeds must be whole numbers of at least 0, got {value!r}")


def _check_name(name: str, value: Any) -> None:
    what, there = NAMES[name]
    if value not in there:
        raise ValueError(f"no {what} {value!r}; there are {', '.join(there)}")


def _check_table(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a table of settings, got {value!r}")


def _check_data(dataset: str, data: Any) -> None:
    """Raise ValueError where ``data`` are no arguments of the world (their range it checks)."""
    _check_table("data", data)
    if data and not dataset.startswith(WORLD):
        raise ValueError(f"data = .. draws a world, but {dataset} is a file")
    if data:
        check_kinds(getattr(worlds, dataset.removeprefix(WORLD)), data, "data.")


def _check_training(model: str, loss: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError where the model, or :func:`~seqrec_lib.fit`, would."""
    sizes = arguments(NEURAL[model], config)
    check_kinds(NEURAL[model], sizes)
    _try_model(model, tuple(sizes.items()))
    options = {each.name: config[each.name] for each in fields(Recipe) if each.name in config}
    Recipe(**options, loss=loss, device="auto")


@cache
def _try_model(model: str, sizes: tuple[tuple[str, Any], ...]) -> None:
    """Make a model of one item: its constructor checks its sizes."""
    NEURAL[model](1, **dict(sizes), seed=0)


def _check_weighting(model: str, attention: str, settings: Any) -> None:
    """Raise ValueError where there is no such weighting, or none for such a model."""
    _check_table("weighting", settings)
    NEURAL[model].check_weighting({"name": attention, **settings} if settings else attention)
    if settings:
        check_kinds(WEIGHTINGS[attention], settings, "weighting.")


def arguments(function: Callable, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says to ``function``."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in config.items() if name in names}
