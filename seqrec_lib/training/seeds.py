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
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import stack_module_state
from torch.nn.utils.rnn import pad_sequence

from ..data.splits import Split
from ..models.dropout import Dropout
from .fitting import fit
from .history import History
from .loop import Training
from .losses import ce as cross_entropy
from .losses import full_precision_if
from .recipe import Recipe

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
    rounding, whatever the loss; with it they are other draws from the same distribution.

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
        ValueError: two models are the same object, differ in their configuration or in
            interventions, read with positions exchanged, or share parameters between their
            modules, or there are not as many seeds as models; or as :func:`fit`.
        TrainingDiverged: a loss is no longer finite; seed, epoch and step are named. All models
            hold their best earlier state.
    """
    if len(models) != len(seeds):
        raise ValueError(f"{len(models)} models need as many seeds, got {len(seeds)}")
    if not models:
        raise ValueError("there is no model to train")
    if len({id(model) for model in models}) < len(models):
        raise ValueError("one model is given for several seeds; each needs a model of its own")
    configs = [getattr(model, "config", {}) for model in models]
    if any(config != configs[0] for config in configs):
        raise ValueError("only models of one configuration can be trained as one")
    changed = [getattr(model, "departures", dict)() for model in models]
    if any(own != changed[0] for own in changed):
        raise ValueError("only models under the same interventions can be trained as one")
    if "reading" in changed[0]:
        raise ValueError(f"models that read {changed[0]['reading']} cannot be trained as one")
    if len([*models[0].named_parameters(remove_duplicate=False)]) > len([*models[0].parameters()]):
        raise ValueError("models that use a parameter twice cannot be trained as one")
    recipe = Recipe(**{**_DEFAULTS, "loss": loss, **options})
    named = {"seeds": list(seeds), "patience": recipe.patience}
    training = Training(Stacked, models, seeds, split, recipe, named, checkpoint)
    return training.run(progress, on_epoch)


_DEFAULTS = {name: inspect.signature(fit).parameters[name].default
             for name in (option.name for option in fields(Recipe))}  # fmt: skip


class Stacked:
    """K models as one: their parameters stacked along a first axis, (K, ..).

    A skeleton, one model more, computes with the parameters that are put into it. (That is
    ``torch.func.functional_call``, whose calls would take a fifth of a small model's step.)
    """

    def __init__(self, models: Sequence[nn.Module]):
        self.models = [model.train() for model in models]  # stacked only where modes are equal
        parameters, buffers = stack_module_state(self.models)
        self.parameters, self.buffers = list(parameters.values()), list(buffers.values())
        self.skeleton = copy.deepcopy(models[0]).train()
        for module in self.skeleton.modules():
            if isinstance(module, Dropout):
                module.__class__ = nn.Dropout  # ours draws in a way that vmap cannot follow
        self.places = [_place(self.skeleton, name) for name in (*parameters, *buffers)]

    def encode(self, items: Tensor) -> Any:
        """items (K, B, L) -> (K, B, L, D), model by model; one or several."""

        def one(items: Tensor, *tensors: Tensor):
            self._put(tensors)
            return self.skeleton.encode(items)

        vmapped = torch.vmap(one, randomness="different")
        return vmapped(items, *self.parameters, *self.buffers)

    def losses(self, loss: Callable, *arguments: Sequence[Any]) -> Tensor:
        """The loss of each model, (K,); of its arguments there is a list, one a model."""
        known, targets, _ = arguments
        plain = loss is cross_entropy and torch.is_tensor(known[0])
        if plain and _afford_scores(known, self.skeleton.num_items):
            return self._cross_entropies(known, targets)
        # Taken apart once: each model's slice by itself would have a gradient as large as all.
        apart = zip(*(stack.unbind() for stack in (*self.parameters, *self.buffers)), strict=True)
        values = []
        for tensors, own in zip(apart, zip(*arguments, strict=True), strict=True):
            self._put(tensors)
            values.append(loss(self.skeleton, *own))
        return torch.stack(values)

    def _cross_entropies(self, known: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """All models' scores at once, held whole, where each chunk would cost its start."""

        def scores(known: Tensor, *tensors: Tensor) -> Tensor:
            self._put(tensors)
            table, bias = self.skeleton.readout()
            with full_precision_if(bias):
                products = self.skeleton.queries(known).to(table.dtype) @ table[1:].T
            return products if bias is None else products + bias[1:]

        known, targets = (pad_sequence(each, batch_first=True) for each in (known, targets))
        logits = torch.vmap(scores)(known, *self.parameters, *self.buffers)  # (K, n, num_items)
        values = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten() - 1, ignore_index=-1, reduction="none"
        )
        return values.view(targets.shape).sum(1) / (targets > 0).sum(1)

    def _put(self, tensors: Sequence[Tensor]) -> None:
        for (place, name), tensor in zip(self.places, tensors, strict=True):
            place[name] = tensor

    def gradient_lengths(self) -> Tensor:
        """How long the gradient of each model is, all its parameters' as one vector: (K,)."""
        rows = [gradient.reshape(len(gradient), -1).norm(dim=1) for gradient in self._gradients()]
        return torch.stack(rows).norm(dim=0)

    def clip(self, norm: float, lengths: Tensor) -> None:
        """Shorten each model's gradient to ``norm`` where it is longer, as torch does one's."""
        share = (norm / (lengths + 1e-6)).clamp(max=1)
        for gradient in self._gradients():
            gradient *= share.view(-1, *[1] * (gradient.dim() - 1))

    def _gradients(self) -> list[Tensor]:
        return [stack.grad for stack in self.parameters if stack.grad is not None]

    def write_back(self) -> None:
        """Copy what has been learnt into the models."""
        with torch.no_grad():
            for which, model in enumerate(self.models):
                for mine, stack in zip(model.parameters(), self.parameters, strict=True):
                    mine.copy_(stack[which])

    def keep(self, rows: list[int], optimizer: torch.optim.Optimizer) -> None:
        """Go on with these models alone; the others have stopped."""
        self.models = [self.models[row] for row in rows]
        self.buffers = [buffer[rows] for buffer in self.buffers]
        for number, before in enumerate(self.parameters):
            now = before.detach()[rows].requires_grad_(before.requires_grad)
            self.parameters[number] = now
            if (state := optimizer.state.pop(before, None)) is not None:  # else it never moved
                optimizer.state[now] = {
                    name: moment[rows] if moment.dim() else moment  # a count of steps has no rows
                    for name, moment in state.items()
                }
        optimizer.param_groups[0]["params"] = list(self.parameters)


def _afford_scores(known: Sequence[Tensor], num_items: int) -> bool:
    """A GPU has no time for chunks, and mostly the memory to hold the scores of all positions.

    They may take an eighth of it, for other jobs may be beside this one. A score takes 12 bytes:
    itself, its logarithm and its gradient.
    """
    where = known[0].device
    if where.type != "cuda":
        return False
    scores = len(known) * max(map(len, known)) * num_items
    return 12 * scores <= torch.cuda.get_device_properties(where).total_memory // 8


def _place(model: nn.Module, path: str) -> tuple[dict[str, Tensor | None], str]:
    """Where a module keeps a parameter or buffer: a dictionary, and the key in it."""
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    return (module._parameters if name in module._parameters else module._buffers), name
