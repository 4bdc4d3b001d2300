"""Several seeds of one configuration, trained as one batched model.

Models this small leave a GPU idle: what costs time there is starting its kernels, not the
arithmetic. So the models' parameters are stacked and one pass computes them all.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from tqdm.auto import tqdm

from ..data.splits import Split
from ..device import device as pick_device
from ..evaluation.ranking import evaluate
from ..models.dropout import Dropout
from .fitting import (
    TrainingDiverged,
    _at,
    _Batch,
    _Batches,
    _cutoff,
    _mixed,
    _Negatives,
    _patience_spent,
)
from .history import History
from .losses import LOSSES

__all__ = ["fit_seeds"]


def fit_seeds(
    models: Sequence[nn.Module],
    split: Split,
    loss: str = "ce",
    *,
    seeds: Sequence[int],
    epochs: int = 100,
    patience: int | None = 10,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    negatives: int = 1,
    device: str = "auto",
    precision: str = "float32",
    monitor: str = "NDCG@10",
    filter_seen: bool = False,
    progress: bool = True,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> list[History]:
    """Train ``models[i]`` as ``fit(models[i], split, seed=seeds[i], ..)`` would, all at once.

    Each model sees its own batches in its own order, stops by its own validation score, and is
    left at its own best epoch. Without dropout the weights equal those of :func:`fit` up to
    rounding; with it they are other draws from the same distribution.

    Args:
        models: alike in everything but their parameters' values.
        seeds: one for each model; the other arguments are as in :func:`fit`.
        on_epoch: called with (which model, the entry of its history).

    Returns:
        the histories; ``seconds`` of an epoch is each model's share of it.

    Raises:
        ValueError: the models differ in their configuration, or not as many seeds as models.
        TrainingDiverged: a loss is no longer finite; seed and epoch are named.
    """
    if len(models) != len(seeds):
        raise ValueError(f"{len(models)} models need as many seeds, got {len(seeds)}")
    if any(model.config != models[0].config for model in models):
        raise ValueError("only models of one configuration can be trained as one")
    if loss not in LOSSES:
        raise ValueError(f"no loss is called {loss!r}; there are: {', '.join(LOSSES)}")
    where, cutoff = pick_device(device), _cutoff(monitor)
    for model in models:
        model.to(where).train()
    stacked = _Stacked(models)
    batches = _Batches(split.train, models[0].max_len, batch_size, where)
    sampler = None if loss == "ce" else _Negatives(split.train, negatives, where)
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    optimizer = kind(stacked.parameters.values(), lr=lr, weight_decay=weight_decay, fused=True)
    histories = [History(monitor=monitor) for _ in seeds]
    best = [None] * len(models)

    def step(parts: Sequence[_Batch]) -> Tensor:
        with _mixed(where, precision if where.type != "cpu" else "float32"):
            encoded = stacked.encode(_common_shape([part.items for part in parts]))
        values = []
        for which, part in enumerate(parts):
            drawn = None if sampler is None else sampler(part)
            known = _at(_pick(encoded, which, part.items), part.real)
            with _mixed(where, precision):
                values.append(LOSSES[loss](stacked.view(which), known, part.targets, drawn))
        values = torch.stack(values)
        optimizer.zero_grad(set_to_none=True)
        values.sum().backward()
        optimizer.step()
        return values.detach()

    bar = tqdm(
        total=epochs,
        desc=f"fit {len(seeds)} seeds of {split.train.name}",
        unit="epoch",
        disable=not progress,
        leave=False,
    )
    with bar, torch.random.fork_rng():
        for epoch in range(1, epochs + 1):
            start = time.perf_counter()
            states = [np.random.SeedSequence([seed, epoch]) for seed in seeds]
            torch.manual_seed(int(states[0].generate_state(1, np.uint64)[0] >> 1))
            orders = [batches.epoch(np.random.default_rng(state)) for state in states]
            losses = torch.stack([step(parts) for parts in zip(*orders, strict=True)]).mean(0)
            for seed, value in zip(seeds, losses.tolist(), strict=True):
                if not np.isfinite(value):
                    raise TrainingDiverged(
                        f"seed {seed}: the loss is {value} at epoch {epoch}; "
                        "try a lower lr, or precision='float32'"
                    )
            share = (time.perf_counter() - start) / len(seeds)
            for which, (model, history) in enumerate(zip(models, histories, strict=True)):
                if _patience_spent(history, patience):
                    continue  # it has stopped; the others carry it along
                begun = time.perf_counter()
                entry = {"epoch": epoch, "loss": float(losses[which])}
                if len(split.validation):
                    stacked.copy_to(model, which)
                    metrics = evaluate(
                        model, split, part="validation", ks=(cutoff,), filter_seen=filter_seen
                    )
                    entry |= {name: float(value) for name, value in metrics.items()}
                entry["seconds"] = share + time.perf_counter() - begun
                history.epochs.append(entry)
                if monitor not in entry or history.best_epoch == epoch:
                    best[which] = {
                        name: p[which].detach().clone() for name, p in stacked.parameters.items()
                    }
                if _patience_spent(history, patience):
                    history.stopped = "patience"
                if on_epoch is not None:
                    on_epoch(which, entry)
            bar.update()
            if all(history.stopped == "patience" for history in histories):
                break
    for model, values in zip(models, best, strict=True):
        if values is not None:
            model.load_state_dict(values, strict=False)
        model.eval()
    return histories


class _Stacked:
    """K models as one: their parameters stacked along a first axis.

    Attributes:
        parameters: name -> (K, ..) leaf tensors, what the optimiser moves.
    """

    def __init__(self, models: Sequence[nn.Module]):
        self.parameters, self.buffers = stack_module_state(list(models))
        self.skeleton = _Method(copy.deepcopy(models[0]))
        for module in self.skeleton.modules():
            if isinstance(module, Dropout):
                module.__class__ = nn.Dropout  # ours draws in a way that vmap cannot follow

    def encode(self, items: Tensor):
        """items (K, B, L) -> (K, B, L, D), model by model."""

        def one(parameters, buffers, items):
            state = {f"model.{name}": value for name, value in (parameters | buffers).items()}
            return functional_call(self.skeleton, state, ("encode", items))

        return torch.vmap(one, randomness="different")(self.parameters, self.buffers, items)

    def view(self, which: int) -> _View:
        """One of the models, for reading out scores; gradients reach the stacked parameters."""
        return _View(self, which)

    def copy_to(self, model: nn.Module, which: int) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.parameters[name][which])


class _Method(nn.Module):
    """Makes any method of a model callable through ``functional_call``."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, method: str, *arguments):
        return getattr(self.model, method)(*arguments)


class _View:
    """What a loss asks of a model, answered with one slice of the stacked parameters."""

    def __init__(self, stacked: _Stacked, which: int):
        self.stacked = stacked
        self.state = {f"model.{name}": value[which] for name, value in stacked.parameters.items()}

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
