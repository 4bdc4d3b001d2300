"""Training one model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.splits import Split
from .history import History
from .loop import Training
from .recipe import Recipe

__all__ = ["fit"]


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
            only the loss's matrix products take it, and where the processor has no instructions
            for it, they are float32, too.
        monitor: the validation metric that chooses the best epoch.
        filter_seen: as in :func:`evaluate`, for the validation metric.
        checkpoint: a file written after an epoch: every twenty seconds, at the end, and where
            ``on_epoch`` raises. A run that was cut short continues from it and ends with the
            very weights (on a CPU, bit for bit) of a run that was not: what the file holds takes
            the place of the model's weights, so a training from another start needs another file.
        on_epoch: called with each entry of the history.

    Returns:
        the :class:`History`.

    Raises:
        TrainingDiverged: the loss is no longer finite; epoch and step are named.
        ValueError: an argument is unknown or makes no sense, there is nothing to train on, or the
            checkpoint belongs to another run or is past ``epochs``.
    """
    recipe = Recipe(
        loss=loss, epochs=epochs, patience=patience, batch_size=batch_size, lr=lr,
        weight_decay=weight_decay, warmup=warmup, schedule=schedule, clip_norm=clip_norm,
        negatives=negatives, device=device, precision=precision, monitor=monitor,
        filter_seen=filter_seen,
    )  # fmt: skip
    training = Training(Single, [model], [seed], split, recipe, {"seed": seed}, checkpoint)
    (history,) = training.run(progress, on_epoch and (lambda which, entry: on_epoch(entry)))
    return history


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
