"""What a training is told: the settings of :func:`~.fitting.fit`, checked."""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from ..data.splits import Split
from .losses import LOSSES

__all__ = ["Recipe", "check_kinds", "check_seed", "cutoff"]

#: Of arguments of :func:`fit`, the least that makes sense.
_LEAST = {"epochs": 1, "patience": 1, "batch_size": 1, "negatives": 1, "warmup": 0,
          "weight_decay": 0}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train, whatever the model and its seed: arguments of :func:`fit`, checked.

    Raises:
        ValueError: an argument is not of its kind, is unknown or out of its range.
    """

    loss: str
    epochs: int
    patience: int | None
    batch_size: int
    lr: float
    weight_decay: float
    warmup: int
    schedule: str
    clip_norm: float | None
    negatives: int
    device: str | torch.device
    precision: str
    monitor: str
    filter_seen: bool

    def __post_init__(self):
        check_kinds(Recipe, vars(self))
        if self.loss not in LOSSES:
            raise ValueError(f"no loss is called {self.loss!r}; there are: {', '.join(LOSSES)}")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule must be 'constant' or 'cosine', not {self.schedule!r}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', not {self.precision!r}")
        for what, least in _LEAST.items():
            value = getattr(self, what)
            if value is not None and not value >= least:  # nan is neither more nor less
                raise ValueError(f"{what} must be at least {least}, got {value}")
        for what in ("lr", "clip_norm"):
            value = getattr(self, what)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{what} must be above 0 and finite, got {value}")
        cutoff(self.monitor)

    def learning_rate(self, step: int, steps: int) -> float:
        """At one step, counted from 0, of a training whose epochs have ``steps``."""
        rate = self.lr * min(1.0, (step + 1) / self.warmup) if self.warmup else self.lr
        if self.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / (self.epochs * steps)))
        return rate

    def identity(self, model: nn.Module, split: Split) -> dict[str, Any]:
        """What the weights depend on, but for the seed: two such runs share no checkpoint."""
        settings = asdict(self)
        for free in ("device", "patience", *(["epochs"] if self.schedule == "constant" else [])):
            del settings[free]  # a run may go on elsewhere, or longer
        asked = split.validation
        logs = (split.train.sequences, asked.histories)
        arrays = (*(part for log in logs for part in (log.values, log.offsets)), asked.targets)
        return {
            "model": type(model).__name__, **getattr(model, "config", {}), **settings,
            "users": split.train.num_users, "interactions": split.train.num_interactions,
            "data": [zlib.crc32(array.tobytes()) for array in arrays],
            "interventions": getattr(model, "departures", dict)(),
        }  # fmt: skip


#: Plain kinds of values, as annotations name them: what they may be, and what messages call them.
_KINDS = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    bool: ((bool, np.bool_), "true or false"),
    str: (str, "a string"),
    NoneType: (NoneType, "None"),
}


def check_kinds(function: Callable, arguments: Mapping[str, Any], within: str = "") -> None:
    """Check arguments of ``function`` by its annotations, where these are plain kinds of values.

    Args:
        within: what messages put before the name of an argument.

    Raises:
        ValueError: there is no such argument, or it is of another kind.
    """
    known = _annotations(function)
    for name, value in arguments.items():
        if name not in known:
            raise ValueError(
                f"{function.__name__} has no setting {within}{name}; "
                f"it has {', '.join(known) or 'none'}"
            )
        kinds = get_args(known[name]) or (known[name],)
        if _KINDS.keys() >= {*kinds} and not any(_is(value, kind) for kind in kinds):
            words = " or ".join(_KINDS[kind][1] for kind in kinds)
            raise ValueError(f"{within}{name} must be {words}, got {value!r}")


@cache
def _annotations(function: Callable) -> dict[str, Any]:
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return {each.name: each.annotation for each in parameters if each.kind is not each.VAR_KEYWORD}


def _is(value: Any, kind: type) -> bool:
    # To Python True is the number 1; as a number of epochs it is a mistake.
    return isinstance(value, _KINDS[kind][0]) and (kind is bool or not isinstance(value, bool))


def check_seed(seed: Any) -> None:
    """Raise ValueError where ``seed`` is no whole number from 0."""
    if not _is(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number, 0 or more, got {seed!r}")


def cutoff(monitor: str) -> int:
    """The K of a metric's name; MRR has none and any K will do."""
    if monitor == "MRR":
        return 10
    kind, _, k = monitor.partition("@")
    if kind not in ("HR", "NDCG") or not k.isdecimal() or int(k) < 1:
        raise ValueError(f"monitor must be 'HR@K', 'NDCG@K' or 'MRR', not {monitor!r}")
    return int(k)
