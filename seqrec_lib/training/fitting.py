"""The training loop."""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.splits import Split
from ..device import device as pick_device
from ..evaluation.ranking import evaluate
from .batches import Batch, Batches, Negatives
from .checkpoints import load_checkpoint, save_checkpoint
from .history import History
from .losses import LOSSES

__all__ = ["Recipe", "TrainingDiverged", "fit", "train"]

#: Seconds between two writings of a checkpoint, the most that a kill undoes besides its epoch. A
#: GPU would wait for each, and its epochs are short.
SAVE_EVERY = 20.0


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
    clip_norm: float | None = None,
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
    target, predicted from those before it. All targets count the same.

    Args:
        loss: "ce" (all items), "sampled_ce", "bce" or "bpr" (against ``negatives`` items drawn
            uniformly among those the user has not taken).
        epochs: at most so many passes over the users.
        patience: stop after so many epochs without a better ``monitor``; None never stops.
        batch_size: users in a batch.
        lr, weight_decay: of Adam (of AdamW where there is weight decay).
        warmup: steps over which the learning rate rises to ``lr``.
        schedule: "constant", or "cosine" (falls to 0 over ``epochs``).
        clip_norm: a gradient (of all parameters, as one vector) that is longer than this is
            shortened to it (Pascanu et al. 2013, algorithm 1); None leaves it as it is.
        seed: of batches, dropout and negatives; torch's own generator is left as it was.
        device: "auto", "cpu", "cuda", ...
        precision: "float32", or "bfloat16": mixed precision, parameters stay float32. On a CPU
            only the loss's matrix products take it, where the processor has the instructions.
        monitor: the validation metric that chooses the best epoch.
        filter_seen: as in :func:`evaluate`, for the validation metric.
        checkpoint: a file written after an epoch: every twenty seconds, at the end, and where
            ``on_epoch`` raises. A run that was cut short continues from it and ends with the
            very weights (on a CPU, bit for bit) of a run that was not.
        on_epoch: called with each entry of the history.

    Returns:
        the :class:`History`.

    Raises:
        TrainingDiverged: the loss is no longer finite; epoch and step are named.
        ValueError: an argument is unknown or makes no sense, there is nothing to train on, or the
            checkpoint belongs to another run.
    """
    recipe = Recipe(
        loss=loss, epochs=epochs, patience=patience, batch_size=batch_size, lr=lr,
        weight_decay=weight_decay, warmup=warmup, schedule=schedule, clip_norm=clip_norm,
        negatives=negatives, device=device, precision=precision, monitor=monitor,
        filter_seen=filter_seen,
    )  # fmt: skip
    (history,) = train(
        Single, [model], [seed], split, recipe, {"seed": seed}, checkpoint, progress,
        on_epoch and (lambda which, entry: on_epoch(entry)),
    )  # fmt: skip
    return history


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
        _cutoff(self.monitor)

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


@dataclass(eq=False)
class Member:
    """A model in training, its seed, and where it stands."""

    model: nn.Module
    seed: int
    history: History
    best: dict[str, Tensor] = field(default_factory=dict)

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
            ks=(_cutoff(recipe.monitor),),
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


class Single:
    """How the loop handles one model; ``Stacked`` in ``seeds.py`` handles several as one."""

    def __init__(self, models: Sequence[nn.Module]):
        (self.model,) = models
        self.parameters = list(self.model.parameters())

    def encode(self, items: Tensor) -> Any:
        """What the models know after each of their items (K, B, L): (.., D), one or several."""
        return self.model.encode(items[0])

    def losses(self, loss: Callable, *arguments: Sequence[Any]) -> Tensor:
        """The loss of each model, (K,); of its arguments there is a list, one a model."""
        return torch.stack([loss(self.model, *own) for own in zip(*arguments, strict=True)])

    def gradient_lengths(self) -> Tensor:
        """How long the gradient of each model is, all its parameters' as one vector: (K,)."""
        gradients = [each.grad for each in self.parameters if each.grad is not None]
        return nn.utils.get_total_norm(gradients)[None]

    def clip(self, norm: float, lengths: Tensor) -> None:
        """Shorten each model's gradient to ``norm`` where it is longer."""
        nn.utils.clip_grads_with_norm_(self.parameters, norm, lengths[0])

    def write_back(self) -> None:
        """Let the models hold what has been learnt."""

    def keep(self, rows: list[int], optimizer: torch.optim.Optimizer) -> None:
        """Go on with these models alone."""


def train(
    make_learner: type,
    models: Sequence[nn.Module],
    seeds: Sequence[int],
    split: Split,
    recipe: Recipe,
    named: dict[str, Any],
    checkpoint: str | os.PathLike | None,
    progress: bool,
    on_epoch: Callable[[int, dict[str, float]], None] | None,
) -> list[History]:
    """The loop behind :func:`fit` and :func:`~.seeds.fit_seeds`.

    Args:
        make_learner: :class:`Single` or ``Stacked``.
        named: what the checkpoint's identity says of the seeds of training; those that the models'
            initial values were drawn from are added.
        on_epoch: called with (which model, the entry of its history).
    """
    where = pick_device(recipe.device)
    for model in models:  # an unknown item would spoil the process of a GPU
        if (known := getattr(model, "num_items", split.num_items)) != split.num_items:
            raise ValueError(
                f"the model knows {known} items and the split has {split.num_items}; "
                f"make it with num_items={split.num_items}"
            )
    members = [
        Member(model.to(where), seed, History(monitor=recipe.monitor), _copy(model.state_dict()))
        for model, seed in zip(models, seeds, strict=True)
    ]
    batches = Batches(split.train, models[0].max_len, recipe.batch_size, where)
    sampler = None if recipe.loss == "ce" else Negatives(split.train, recipe.negatives, where)
    identity = recipe.identity(models[0], split) | named
    identity["model_seeds"] = [getattr(model, "seed", None) for model in models]
    saved = load_checkpoint(checkpoint, identity) if checkpoint is not None else None
    if saved is not None:
        for member, state in zip(members, saved["members"], strict=True):
            member.restore(state, recipe.patience)

    def patient(some: Sequence[Member]) -> list[Member]:
        return [member for member in some if not member.patience_spent(recipe.patience)]

    active = [member for member in patient(members) if len(member.history) < recipe.epochs]
    if active:
        learner = make_learner([member.model for member in active])
        kind = torch.optim.AdamW if recipe.weight_decay else torch.optim.Adam
        optimizer = kind(
            learner.parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
        )
        if saved is not None:
            optimizer.load_state_dict(saved["optimizer"])

    def step(batch: Batch, draws: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        drawn = [None] * len(active)
        if sampler is not None:
            drawn = sampler(batch, draws).split(batch.sizes)
        # On a CPU bfloat16 pays in the loss alone (benchmarks/bench_training.py).
        with _mixed(where, recipe.precision if where.type != "cpu" else "float32"):
            known = _at(learner.encode(batch.items), batch)
        with _mixed(where, recipe.precision):
            targets = batch.targets.split(batch.sizes)
            values = learner.losses(LOSSES[recipe.loss], known, targets, drawn) * batch.shares
        optimizer.zero_grad(set_to_none=True)
        values.sum().backward()
        lengths = learner.gradient_lengths()
        if recipe.clip_norm is not None:
            learner.clip(recipe.clip_norm, lengths)
        optimizer.step()
        return values.detach(), lengths

    def save() -> None:
        state = [member.state() for member in members]
        save_checkpoint(checkpoint, identity, members=state, optimizer=optimizer.state_dict())

    what = split.train.name if len(members) == 1 else f"{len(members)} seeds of {split.train.name}"
    bar = tqdm(
        total=recipe.epochs,
        initial=len(active[0].history) if active else recipe.epochs,
        desc=f"fit {what}",
        unit="epoch",
        disable=not progress,
        leave=False,
    )
    drawn_on = [where] if where.type == "cuda" else []
    last_saved = time.perf_counter()
    with bar, torch.random.fork_rng(devices=drawn_on):
        while active:
            epoch, start = len(active[0].history) + 1, time.perf_counter()
            # Seeded anew each epoch, so that a run can be taken up at any epoch's start.
            states = [np.random.SeedSequence([member.seed, epoch]) for member in active]
            _seed(where, _word(states[0], 0))
            for member in active:
                member.model.train()
            losses, gradients = _Losses(members, active, epoch), []
            rngs = [np.random.default_rng(state) for state in states]
            draws = [torch.Generator(where).manual_seed(_word(state, 1)) for state in states]
            for number, batch in enumerate(batches.epoch(*rngs)):
                for group in optimizer.param_groups:
                    done = (epoch - 1) * len(batches) + number
                    group["lr"] = recipe.learning_rate(done, len(batches))
                values, lengths = step(batch, draws)
                losses.add(values)
                gradients.append(lengths)
            learner.write_back()
            means, lengths = losses.means(), torch.stack(gradients)
            usual, longest = lengths.median(0).values.tolist(), lengths.amax(0).tolist()
            share = (time.perf_counter() - start) / len(active)
            for which, member in enumerate(active):
                start = time.perf_counter()
                entry = {
                    "epoch": epoch,
                    "loss": means[which],
                    "gradient": usual[which],
                    "longest gradient": longest[which],
                    **member.validate(split, recipe),
                }
                entry["seconds"] = share + time.perf_counter() - start
                member.add(entry, recipe.patience)
            trained, left = active, patient(active)
            if 0 < len(left) < len(trained):  # after the last epoch, too: a run may be extended
                learner.keep([trained.index(member) for member in left], optimizer)
            active = left if epoch < recipe.epochs else []
            unsaved = checkpoint is not None
            if unsaved and (not active or time.perf_counter() - last_saved >= SAVE_EVERY):
                save()
                unsaved, last_saved = False, time.perf_counter()
            entries = [member.history.epochs[-1] for member in trained]
            shown = [key for key in ("loss", recipe.monitor) if key in entries[0]]
            bar.set_postfix({k: f"{np.mean([entry[k] for entry in entries]):.4f}" for k in shown})
            bar.update()
            try:
                if on_epoch is not None:
                    for member, entry in zip(trained, entries, strict=True):
                        on_epoch(members.index(member), entry)
            except BaseException:  # Ctrl-C, or a time limit: what is done stays done
                if unsaved:
                    save()
                raise
    for member in members:
        member.finish()
    return [member.history for member in members]


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
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(where.type, torch.bfloat16)


def _cutoff(monitor: str) -> int:
    """The K of a metric's name; MRR has none and any K will do."""
    if monitor == "MRR":
        return 10
    kind, _, k = monitor.partition("@")
    if kind not in ("HR", "NDCG") or not k.isdecimal() or int(k) < 1:
        raise ValueError(f"monitor must be 'HR@K', 'NDCG@K' or 'MRR', not {monitor!r}")
    return int(k)
