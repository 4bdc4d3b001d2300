"""The training loop."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.splits import Split
from ..device import device as pick_device
from ..device import has_bfloat16
from ..evaluation.ranking import evaluate
from .batches import Batch, Batches, Negatives
from .checkpoints import load_checkpoint, save_checkpoint
from .history import History
from .losses import LOSSES
from .recipe import Recipe, check_seed, cutoff

__all__ = ["Training", "TrainingDiverged"]

#: Seconds between two writings of a checkpoint, the most that a kill undoes besides its epoch. A
#: GPU would wait for each, and its epochs are short.
SAVE_EVERY = 20.0


class TrainingDiverged(FloatingPointError):  # noqa: N818 (it names what happened)
    """The loss became NaN or infinite. The model holds the best state that was validated."""


@dataclass(eq=False)
class Member:
    """A model in training, its seed, and where it stands."""

    model: nn.Module
    seed: int
    history: History
    best: dict[str, Tensor] = field(init=False)

    def __post_init__(self):
        self.best = _copy(self.model.state_dict())

    def state(self) -> dict[str, Any]:
        history = self.history.to_dict()
        return {"model": self.model.state_dict(), "best": self.best, "history": history}

    def restore(self, state: dict[str, Any], patience: int | None) -> None:
        self.model.load_state_dict(state["model"])
        self.best, self.history = state["best"], History(**state["history"])
        self.say_why(patience)  # which may be another this time

    def validate(self, split: Split, recipe: Recipe) -> dict[str, float]:
        if not len(split.validation):
            return {}
        metrics = evaluate(
            self.model,
            split,
            part="validation",
            ks=(cutoff(recipe.monitor),),
            filter_seen=recipe.filter_seen,
            progress=False,
        )
        return {name: float(value) for name, value in metrics.items()}

    def add(self, entry: dict[str, float], patience: int | None) -> None:
        """An epoch has ended: is it the best, or the last?"""
        self.history.epochs.append(entry)
        if self.history.best_epoch == entry["epoch"]:
            self.best = _copy(self.model.state_dict())
        self.say_why(patience)

    def say_why(self, patience: int | None) -> None:
        self.history.stopped = "patience" if self.patience_spent(patience) else "epochs"

    def patience_spent(self, patience: int | None) -> bool:
        history = self.history
        if patience is None or not history.epochs:
            return False
        return len(history) - history.best_epoch >= patience

    def finish(self) -> None:
        self.model.load_state_dict(self.best)
        self.model.eval()


class Training:
    """Models in training, epoch by epoch: the loop behind ``fit`` and ``fit_seeds``.

    It starts where the checkpoint says that an earlier run ended.

    Args:
        make_learner: ``Single`` or ``Stacked``, how one step handles one model or several.
        named: what the checkpoint's identity says of the seeds of training; those that the models'
            initial values were drawn from are added.

    Raises:
        ValueError: a seed is no whole number, a model knows other items than the split, there is
            nothing to train on, or the checkpoint belongs to another run or is past the last epoch.
    """

    def __init__(
        self,
        make_learner: type,
        models: Sequence[nn.Module],
        seeds: Sequence[int],
        split: Split,
        recipe: Recipe,
        named: dict[str, Any],
        checkpoint: str | os.PathLike | None,
    ):
        self.split, self.recipe, self.checkpoint = split, recipe, checkpoint
        self.where = pick_device(recipe.device)
        for seed in seeds:
            check_seed(seed)
        for model in models:  # an unknown item would spoil the process of a GPU
            if (known := getattr(model, "num_items", split.num_items)) != split.num_items:
                raise ValueError(
                    f"the model knows {known} items and the split has {split.num_items}; "
                    f"make it with num_items={split.num_items}"
                )
        self.members = [
            Member(model.to(self.where), seed, History(monitor=recipe.monitor))
            for model, seed in zip(models, seeds, strict=True)
        ]
        self.batches = Batches(split.train, models[0].max_len, recipe.batch_size, self.where)
        self.sampler = None
        if recipe.loss != "ce":
            self.sampler = Negatives(split.train, recipe.negatives, self.where)
        self.identity = recipe.identity(models[0], split) | named
        self.identity["model_seeds"] = [getattr(model, "seed", None) for model in models]
        saved = load_checkpoint(checkpoint, self.identity) if checkpoint is not None else None
        if saved is not None:
            for member, state in zip(self.members, saved["members"], strict=True):
                member.restore(state, recipe.patience)
            if (done := max(len(m.history) for m in self.members)) > recipe.epochs:
                raise ValueError(
                    f"{checkpoint} is at epoch {done}, past epochs={recipe.epochs}; ask for at "
                    f"least {done}, or give this run another file"
                )
        self.active = [m for m in self.patient(self.members) if len(m.history) < recipe.epochs]
        if self.active:
            self.learner = make_learner([member.model for member in self.active])
            kind = torch.optim.AdamW if recipe.weight_decay else torch.optim.Adam
            self.optimizer = kind(
                self.learner.parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=True
            )
            if saved is not None:
                self.optimizer.load_state_dict(saved["optimizer"])
        self.unsaved, self.saved_at = False, time.perf_counter()

    def patient(self, some: Sequence[Member]) -> list[Member]:
        return [member for member in some if not member.patience_spent(self.recipe.patience)]

    def run(
        self, progress: bool, on_epoch: Callable[[int, dict[str, float]], None] | None
    ) -> list[History]:
        """Train to the end, and leave each model at its best epoch.

        Args:
            on_epoch: called with (which model, the entry of its history).

        Raises:
            TrainingDiverged: a loss is no longer finite; all models are at their best epoch.
        """
        drawn_on = [self.where] if self.where.type == "cuda" else []
        with self.bar(progress) as bar, torch.random.fork_rng(devices=drawn_on):
            while self.active:
                trained = self.epoch()
                if not self.active or time.perf_counter() - self.saved_at >= SAVE_EVERY:
                    self.save()
                entries = [member.history.epochs[-1] for member in trained]
                shown = [key for key in ("loss", self.recipe.monitor) if key in entries[0]]
                means = {key: np.mean([entry[key] for entry in entries]) for key in shown}
                bar.set_postfix({key: f"{mean:.4f}" for key, mean in means.items()})
                bar.update()
                try:
                    if on_epoch is not None:
                        for member, entry in zip(trained, entries, strict=True):
                            on_epoch(self.members.index(member), entry)
                except BaseException:  # Ctrl-C, or a time limit: what is done stays done
                    self.save()
                    raise
        for member in self.members:
            member.finish()
        return [member.history for member in self.members]

    def epoch(self) -> list[Member]:
        """One epoch of the active models, and its validation; who was in it."""
        trained, start = self.active, time.perf_counter()
        number = len(trained[0].history) + 1
        learnt = self.learn(number)
        share = (time.perf_counter() - start) / len(trained)
        for member, of_training in zip(trained, learnt, strict=True):
            start = time.perf_counter()
            entry = {"epoch": number, **of_training, **member.validate(self.split, self.recipe)}
            entry["seconds"] = share + time.perf_counter() - start
            member.add(entry, self.recipe.patience)
        left = self.patient(trained)
        if 0 < len(left) < len(trained):  # after the last epoch, too: a run may be extended
            self.learner.keep([trained.index(member) for member in left], self.optimizer)
        self.active = left if number < self.recipe.epochs else []
        self.unsaved = True
        return trained

    def learn(self, epoch: int) -> list[dict[str, float]]:
        """Show every user once; for each model, what to remember of losses and gradients."""
        # Seeded anew each epoch, so that a run can be taken up at any epoch's start.
        states = [np.random.SeedSequence([member.seed, epoch]) for member in self.active]
        _seed(self.where, _word(states[0], 0))
        for member in self.active:
            member.model.train()
        losses, gradients = _Losses(self.members, self.active, epoch), []
        rngs = [np.random.default_rng(state) for state in states]
        draws = [torch.Generator(self.where).manual_seed(_word(state, 1)) for state in states]
        for done, batch in enumerate(self.batches.epoch(*rngs), (epoch - 1) * len(self.batches)):
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate(done, len(self.batches))
            values, lengths = self.step(batch, draws)
            losses.add(values)
            gradients.append(lengths)
        self.learner.write_back()
        means, lengths = losses.means(), torch.stack(gradients)
        usual, longest = lengths.median(0).values.tolist(), lengths.amax(0).tolist()
        return [
            {"loss": mean, "gradient": middle, "longest gradient": most}
            for mean, middle, most in zip(means, usual, longest, strict=True)
        ]

    def step(self, batch: Batch, draws: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """One step: the loss of each model, and how long its gradient was, two (K,)."""
        drawn = [None] * len(self.active)
        if self.sampler is not None:
            drawn = self.sampler(batch, draws).split(batch.sizes)
        # On a CPU bfloat16 pays in the loss alone (benchmarks/bench_training.py).
        with _mixed(self.where, self.recipe.precision if self.where.type != "cpu" else "float32"):
            known = _at(self.learner.encode(batch.items), batch)
        with _mixed(self.where, self.recipe.precision):
            targets = batch.targets.split(batch.sizes)
            values = self.learner.losses(LOSSES[self.recipe.loss], known, targets, drawn)
            values = values * batch.shares
        self.optimizer.zero_grad(set_to_none=True)
        values.sum().backward()
        lengths = self.learner.gradient_lengths()
        if self.recipe.clip_norm is not None:
            self.learner.clip(self.recipe.clip_norm, lengths)
        self.optimizer.step()
        return values.detach(), lengths

    def save(self) -> None:
        """Write down where training stands, where that is wanted and not done yet."""
        if self.checkpoint is None or not self.unsaved:
            return
        members = [member.state() for member in self.members]
        optimizer = self.optimizer.state_dict()
        save_checkpoint(self.checkpoint, self.identity, members=members, optimizer=optimizer)
        self.unsaved, self.saved_at = False, time.perf_counter()

    def bar(self, progress: bool) -> tqdm:
        name, several = self.split.train.name, len(self.members)
        return tqdm(
            total=self.recipe.epochs,
            initial=len(self.active[0].history) if self.active else self.recipe.epochs,
            desc=f"fit {name}" if several == 1 else f"fit {several} seeds of {name}",
            unit="epoch",
            disable=not progress,
            leave=False,
        )


def _word(state: np.random.SeedSequence, which: int) -> int:
    """A seed for a generator of torch's; negatives have one of their own, whoever trains beside."""
    return int(state.generate_state(which + 1, np.uint64)[which] >> 1)


class _Losses:
    """The losses of an epoch, watched: one that is not finite ends training."""

    def __init__(self, members: Sequence[Member], active: Sequence[Member], epoch: int):
        self.members, self.active, self.epoch = members, active, epoch
        self.values: list[Tensor] = []  # of each step: (number of models,)
        self.checked = 0

    def add(self, values: Tensor) -> None:
        self.values.append(values)
        # Looking at a value makes a GPU wait, so look at many at once there.
        if values.device.type == "cpu" or len(self.values) - self.checked >= 32:
            self.check()

    def check(self) -> None:
        fresh = torch.stack(self.values[self.checked :])
        bad = (~fresh.isfinite()).nonzero().tolist()
        if bad:
            step, which = bad[0]
            value = float(fresh[step, which])
            self._give_up(which, f"the loss is {value}", self.checked + step + 1)
        self.checked = len(self.values)

    def means(self) -> list[float]:
        """The epoch's losses; the last step's update shows in none, so it is looked at too."""
        if self.checked < len(self.values):
            self.check()
        for which, member in enumerate(self.active):
            if not all(parameter.isfinite().all() for parameter in member.model.parameters()):
                self._give_up(which, "a parameter is no longer finite", len(self.values))
        return torch.stack([row.mean() for row in torch.stack(self.values, 1)]).tolist()

    def _give_up(self, which: int, what: str, step: int) -> None:
        for member in self.members:
            member.finish()
        seed = f"seed {self.active[which].seed}: " if len(self.members) > 1 else ""
        raise TrainingDiverged(
            f"{seed}{what} at epoch {self.epoch}, step {step}; the model holds its best earlier "
            "state. Try a lower lr, some warmup, or precision='float32'"
        )


def _at(encoded: Any, batch: Batch) -> list[Any]:
    """For each model the rows (n, D) at its real positions; where there are several, of each."""
    if torch.is_tensor(encoded):
        return list(encoded.flatten(0, -2)[batch.real].split(batch.sizes))
    return list(zip(*(_at(part, batch) for part in encoded), strict=True))


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _seed(where: torch.device, seed: int) -> None:
    """Seed what training draws from; torch.manual_seed would seed every GPU."""
    torch.default_generator.manual_seed(seed)
    if where.type == "cuda":
        with torch.cuda.device(where):
            torch.cuda.manual_seed(seed)


def _mixed(where: torch.device, precision: str):
    if precision == "float32" or not has_bfloat16(where):
        return contextlib.nullcontext()
    return torch.autocast(where.type, torch.bfloat16)
