"""Several seeds of one configuration, trained as one batched model.

Models this small leave a GPU idle: what costs time there is starting its kernels, not the
arithmetic. So the models' parameters are stacked and one pass computes them all.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ..data.splits import Split
from ..models.dropout import Dropout
from .fitting import Recipe, fit, train
from .history import History

__all__ = ["fit_seeds"]


def fit_seeds(
    models: Sequence[nn.Module],
    split: Split,
    loss: str = "ce",
    *,
    seeds: Sequence[int],
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    **options: Any,
) -> list[History]:
    """Train ``models[i]`` as ``fit(models[i], split, seed=seeds[i], ..)`` would, all at once.

    Each model sees its own batches in its own order, stops by its own validation score, and is
    left at its own best epoch. Without dropout the weights equal those of :func:`fit` up to
    rounding; with it they are other draws from the same distribution.

    Args:
        models: alike in everything but their parameters' values.
        seeds: one for each model.
        checkpoint: as in :func:`fit`, one file for all; its run also has the same seeds and
            the same ``patience``, for a model that has stopped is not taken up again.
        on_epoch: called with (which model, the entry of its history).
        options: the other arguments of :func:`fit`, with its defaults.

    Returns:
        the histories; ``seconds`` of an epoch is each model's share of it.

    Raises:
        ValueError: the models differ in their configuration, or not as many seeds as models;
            or as :func:`fit`.
        TrainingDiverged: a loss is no longer finite; seed, epoch and step are named. All models
            hold their best earlier state.
    """
    if len(models) != len(seeds):
        raise ValueError(f"{len(models)} models need as many seeds, got {len(seeds)}")
    if any(model.config != models[0].config for model in models):
        raise ValueError("only models of one configuration can be trained as one")
    recipe = Recipe(**{**_DEFAULTS, "loss": loss, **options})
    named = {"seeds": list(seeds), "patience": recipe.patience}
    return train(Stacked, models, seeds, split, recipe, named, checkpoint, progress, on_epoch)


_DEFAULTS = {name: inspect.signature(fit).parameters[name].default
             for name in (option.name for option in fields(Recipe))}  # fmt: skip


class Stacked:
    """K models as one: their parameters stacked along a first axis, (K, ..)."""

    def __init__(self, models: Sequence[nn.Module]):
        self.models = list(models)
        self.state, self.buffers = stack_module_state(self.models)
        self.parameters = list(self.state.values())
        self.skeleton = _Method(copy.deepcopy(models[0]).train())
        for module in self.skeleton.modules():
            if isinstance(module, Dropout):
                module.__class__ = nn.Dropout  # ours draws in a way that vmap cannot follow

    def encode(self, items: Sequence[Tensor]) -> list[Any]:
        """K batches (B, L) -> K times (B, L, D); their shapes may differ."""

        def one(parameters, buffers, items):
            state = {f"model.{name}": value for name, value in (parameters | buffers).items()}
            return functional_call(self.skeleton, state, ("encode", items))

        vmapped = torch.vmap(one, randomness="different")
        encoded = vmapped(self.state, self.buffers, _common_shape(items))
        return [_pick(encoded, which, batch) for which, batch in enumerate(items)]

    def views(self) -> list[_View]:
        """The models, for reading out scores; gradients reach the stacked parameters."""
        return [_View(self, which) for which in range(len(self.models))]

    def write_back(self) -> None:
        """Copy what has been learnt into the models."""
        with torch.no_grad():
            for which, model in enumerate(self.models):
                for name, parameter in model.named_parameters():
                    parameter.copy_(self.state[name][which])

    def keep(self, rows: list[int], optimizer: torch.optim.Optimizer) -> None:
        """Go on with these models alone; the others have stopped."""
        self.models = [self.models[row] for row in rows]
        self.buffers = {name: buffer[rows] for name, buffer in self.buffers.items()}
        for parameter in self.parameters:
            parameter.grad, parameter.data = None, parameter.data[rows]
            moments = optimizer.state[parameter]
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = moments[name][rows]


class _Method(nn.Module):
    """Makes any method of a model callable through ``functional_call``."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, method: str, *arguments):
        return getattr(self.model, method)(*arguments)


class _View:
    """What a loss asks of a model, answered with one slice of the stacked parameters."""

    def __init__(self, stacked: Stacked, which: int):
        self.stacked = stacked
        self.state = {f"model.{name}": value[which] for name, value in stacked.state.items()}

    def __getattr__(self, method: str):
        if not hasattr(self.stacked.skeleton.model, method):
            raise AttributeError(method)
        return lambda *arguments: functional_call(
            self.stacked.skeleton, self.state, (method, *arguments)
        )


def _common_shape(batches: Sequence[Tensor]) -> Tensor:
    """Batches (B, L) of different sizes, padded on the left and with empty rows: (K, B, L)."""
    rows, length = (max(sizes) for sizes in zip(*(batch.shape for batch in batches), strict=True))
    return torch.stack([
        nn.functional.pad(batch, (length - batch.shape[1], 0, 0, rows - batch.shape[0]))
        for batch in batches
    ])  # fmt: skip


def _pick(encoded, which: int, items: Tensor):
    """One model's part, cut back to the shape of its own batch."""
    if not torch.is_tensor(encoded):
        return tuple(_pick(part, which, items) for part in encoded)
    return encoded[which, : items.shape[0], encoded.shape[2] - items.shape[1] :]
