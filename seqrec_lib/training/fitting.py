"""The training loop."""

from __future__ import annotations

import contextlib
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.batching import bucketed_batches, pad
from ..data.interactions import Interactions
from ..data.splits import Split
from ..device import device as pick_device
from ..evaluation.ranking import evaluate
from .checkpoints import load_checkpoint, save_checkpoint
from .history import History
from .losses import LOSSES

__all__ = ["TrainingDiverged", "fit"]


class TrainingDiverged(FloatingPointError):  # noqa: N818 (it names what happened)
    """The loss became NaN or infinite. The model holds the last good state."""


def fit(
    model,
    split: Split,
    loss: str = "ce",
    *,
    epochs: int = 100,
    patience: int | None = 10,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    warmup: int = 0,
    schedule: str = "constant",
    negatives: int = 1,
    seed: int = 0,
    device: str = "auto",
    precision: str = "float32",
    monitor: str = "NDCG@10",
    filter_seen: bool = False,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> History:
    """Train ``model`` on ``split.train`` and leave it, in evaluation mode, at its best epoch.

    Of each user the last ``model.max_len + 1`` events are used: every event but the first is a
    target, predicted from those before it.

    Args:
        loss: "ce" (all items), "sampled_ce", "bce" or "bpr" (against ``negatives`` items drawn
            uniformly among those the user has not taken).
        epochs: at most so many passes over the users.
        patience: stop after so many epochs without a better ``monitor``; None never stops.
        batch_size: users in a batch.
        lr, weight_decay: of Adam (of AdamW where there is weight decay).
        warmup: steps over which the learning rate rises to ``lr``.
        schedule: "constant", or "cosine" (falls to 0 over ``epochs``).
        seed: of batches, dropout and negatives; torch's own generator is left as it was.
        device: "auto", "cpu", "cuda", ...
        precision: "float32", or "bfloat16": mixed precision, parameters stay float32. On a CPU
            only the loss's matrix products take it, where the processor has the instructions.
        monitor: the validation metric that chooses the best epoch.
        filter_seen: as in :func:`evaluate`, for the validation metric.
        checkpoint: a file written after every epoch. A run that was cut short continues from it
            and ends with the very weights (on a CPU, bit for bit) of a run that was not.
        on_epoch: called with each entry of the history.

    Returns:
        the :class:`History`.

    Raises:
        TrainingDiverged: the loss is no longer finite; epoch and step are named.
        ValueError: an argument is unknown, there is nothing to train on, or the checkpoint
            belongs to another run.
    """
    if loss not in LOSSES:
        raise ValueError(f"no loss is called {loss!r}; there are: {', '.join(LOSSES)}")
    if schedule not in ("constant", "cosine"):
        raise ValueError(f"schedule must be 'constant' or 'cosine', not {schedule!r}")
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be 'float32' or 'bfloat16', not {precision!r}")
    for what, size in {"batch_size": batch_size, "negatives": negatives}.items():
        if size < 1:
            raise ValueError(f"{what} must be at least 1, got {size}")
    monitored_k = _cutoff(monitor)
    where = pick_device(device)
    model.to(where)
    batches = _Batches(split.train, model.max_len, batch_size, where)
    sampler = None if loss == "ce" else _Negatives(split.train, negatives, where)

    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    optimizer = kind(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    history = History(monitor=monitor)
    best = _copy(model.state_dict())
    identity = {
        "model": type(model).__name__, **model.config, "loss": loss, "batch_size": batch_size,
        "lr": lr, "weight_decay": weight_decay, "warmup": warmup, "schedule": schedule,
        "negatives": negatives, "seed": seed, "precision": precision, "monitor": monitor,
        "filter_seen": filter_seen, "users": split.train.num_users,
        "interactions": split.train.num_interactions,
        "data": zlib.crc32(split.train.sequences.values.tobytes()),
        **({"epochs": epochs} if schedule == "cosine" else {}),
    }  # fmt: skip
    saved = load_checkpoint(checkpoint, identity) if checkpoint is not None else None
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        best, history = saved["best"], History(**saved["history"])

    def learning_rate(step: int) -> float:
        rate = lr * min(1.0, (step + 1) / warmup) if warmup else lr
        if schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / (epochs * len(batches))))
        return rate

    def step(batch: _Batch) -> Tensor:
        drawn = None if sampler is None else sampler(batch)
        # On a CPU bfloat16 pays in the loss alone (benchmarks/bench_training.py).
        with _mixed(where, precision if where.type != "cpu" else "float32"):
            known = _at(model.encode(batch.items), batch.real)
        with _mixed(where, precision):
            value = LOSSES[loss](model, known, batch.targets, drawn)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return value.detach()

    bar = tqdm(
        total=epochs,
        initial=len(history),
        desc=f"fit {split.train.name}",
        unit="epoch",
        disable=not progress,
        leave=False,
    )
    with bar, torch.random.fork_rng():
        while len(history) < epochs and not _patience_spent(history, patience):
            epoch, start = len(history) + 1, time.perf_counter()
            # Seeded anew each epoch, so that a run can be taken up at any epoch's start.
            state = np.random.SeedSequence([seed, epoch])
            torch.manual_seed(int(state.generate_state(1, np.uint64)[0] >> 1))
            model.train()
            losses = _Losses(model, best, epoch)
            for number, batch in enumerate(batches.epoch(np.random.default_rng(state))):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate((epoch - 1) * len(batches) + number)
                losses.add(step(batch))
            entry = {"epoch": epoch, "loss": losses.mean()}
            if len(split.validation):
                metrics = evaluate(
                    model,
                    split,
                    part="validation",
                    ks=(monitored_k,),
                    filter_seen=filter_seen,
                    progress=False,
                )
                entry |= {name: float(value) for name, value in metrics.items()}
            entry["seconds"] = time.perf_counter() - start
            history.epochs.append(entry)
            if monitor not in entry or history.best_epoch == epoch:
                best = _copy(model.state_dict())
            if _patience_spent(history, patience):
                history.stopped = "patience"
            if checkpoint is not None:
                save_checkpoint(
                    checkpoint,
                    identity,
                    model=model.state_dict(),
                    best=best,
                    optimizer=optimizer.state_dict(),
                    history=history.to_dict(),
                )
            bar.set_postfix({key: f"{entry[key]:.4f}" for key in ("loss", monitor) if key in entry})
            bar.update()
            if on_epoch is not None:
                on_epoch(entry)
    model.load_state_dict(best)
    model.eval()
    return history


class _Batch:
    """One step's data: items (B, L), where they are real, and the n targets and their users."""

    def __init__(self, padded: Tensor, users: Tensor, device: torch.device):
        items, targets = padded[:, :-1], padded[:, 1:]
        real = items.flatten().nonzero()[:, 0]
        self.users = users[real // items.shape[1]].to(device, non_blocking=True)
        self.targets = targets.flatten()[real].to(device, non_blocking=True)
        self.items = items.to(device, non_blocking=True)
        self.real = real.to(device, non_blocking=True)


class _Batches:
    """The training sequences of at least two items, in length-bucketed batches."""

    def __init__(self, train: Interactions, max_len: int, batch_size: int, device: torch.device):
        self.sequences, self.max_len, self.device = train.sequences, max_len, device
        self.batch_size = batch_size
        self.users = np.flatnonzero(train.lengths >= 2)
        if not len(self.users):
            raise ValueError(
                f"{train.name}: no user has two training events, so there is nothing "
                "to predict; use more data or a lower k-core"
            )
        # A GPU wants few distinct shapes; a CPU as little padding as can be.
        self.multiple = 1 if device.type == "cpu" else 16

    def __len__(self) -> int:
        return -(-len(self.users) // self.batch_size)

    def epoch(self, rng: np.random.Generator) -> Iterator[_Batch]:
        lengths = np.minimum(self.sequences.lengths[self.users], self.max_len + 1)
        for rows in bucketed_batches(lengths, self.batch_size, rng):
            length = -(-int(lengths[rows].max() - 1) // self.multiple) * self.multiple
            users = self.users[rows]
            padded = pad(
                self.sequences.select(users), self.max_len + 1, length=min(length, self.max_len) + 1
            )
            yield _Batch(padded, torch.from_numpy(users), self.device)


class _Negatives:
    """Draws items uniformly among those a user has not taken in training.

    Exactly, in one pass: the r-th item that is free is r plus the number of taken items before
    it, and a taken item t stands before it where t, less the taken ones before t, is at most r.
    """

    def __init__(self, train: Interactions, count: int, device: torch.device):
        num_items, num_users = train.num_items, train.num_users
        keys = train.sequences.owner * (num_items + 1) + train.sequences.values
        users, items = np.divmod(np.unique(keys), num_items + 1)
        taken = np.bincount(users, minlength=num_users)
        some_left = (taken < num_items)[users]  # who took everything may be given anything
        users, items = users[some_left], items[some_left]
        taken[taken == num_items] = 0
        starts = np.cumsum(taken) - taken
        before = np.arange(len(users)) - starts[users]
        self.num_items, self.count = num_items, count
        self.thresholds, self.starts, self.free = (
            torch.from_numpy(array).to(device)
            for array in (users * (num_items + 1) + items - before, starts, num_items - taken)
        )

    def __call__(self, batch: _Batch) -> Tensor:
        users = batch.users[:, None]
        draws = torch.randint(2**62, (len(users), self.count), device=users.device)
        rank = draws % self.free[users] + 1
        thresholds = users * (self.num_items + 1) + rank
        passed = torch.searchsorted(self.thresholds, thresholds, right=True)
        return rank + passed - self.starts[users]


class _Losses:
    """The losses of an epoch, watched: one that is not finite ends training."""

    def __init__(self, model, last_good: dict[str, Tensor], epoch: int):
        self.model, self.last_good, self.epoch = model, last_good, epoch
        self.values: list[Tensor] = []
        self.checked = 0

    def add(self, value: Tensor) -> None:
        self.values.append(value)
        # Looking at a value makes a GPU wait, so look at many at once there.
        if value.device.type == "cpu" or len(self.values) - self.checked >= 32:
            self.check()

    def check(self) -> None:
        fresh = torch.stack(self.values[self.checked :])
        bad = (~fresh.isfinite()).nonzero()
        if len(bad):
            self._give_up(f"the loss is {float(fresh[bad[0]])}", self.checked + int(bad[0]) + 1)
        self.checked = len(self.values)

    def mean(self) -> float:
        """The epoch's loss; the last step's update shows in no loss, so it is looked at too."""
        if self.checked < len(self.values):
            self.check()
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            self._give_up("a parameter is no longer finite", len(self.values))
        return float(torch.stack(self.values).mean())

    def _give_up(self, what: str, step: int) -> None:
        self.model.load_state_dict(self.last_good)
        self.model.eval()
        raise TrainingDiverged(
            f"{what} at epoch {self.epoch}, step {step}; the model holds its best earlier state. "
            "Try a lower lr, some warmup, or precision='float32'"
        )


def _at(encoded: Any, real: Tensor) -> Any:
    """The rows ``real`` of (B, L, D), flattened; of each tensor where there are several."""
    if torch.is_tensor(encoded):
        return encoded.flatten(0, 1)[real]
    return tuple(_at(part, real) for part in encoded)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _mixed(where: torch.device, precision: str):
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(where.type, torch.bfloat16)


def _patience_spent(history: History, patience: int | None) -> bool:
    if patience is None or not history.epochs or history.monitor not in history.epochs[-1]:
        return False
    return len(history) - history.best_epoch >= patience


def _cutoff(monitor: str) -> int:
    """The K of a metric's name; MRR has none and any K will do."""
    if monitor == "MRR":
        return 10
    kind, _, k = monitor.partition("@")
    if kind not in ("HR", "NDCG") or not k.isdecimal() or int(k) < 1:
        raise ValueError(f"monitor must be 'HR@K', 'NDCG@K' or 'MRR', not {monitor!r}")
    return int(k)
