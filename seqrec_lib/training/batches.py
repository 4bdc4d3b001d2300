"""What a training step is given: sequences and the items that came next, on the device.

A GPU waits for whatever is sent to it and for whatever is read from it. So the data are sent once,
an epoch's order once, and batches are cut out of them there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.batching import bucketed_batches
from ..data.interactions import Interactions

__all__ = ["Batch", "Batches", "Negatives"]


@dataclass(frozen=True)
class Batch:
    """One step's data for K models, each of which has its own users.

    Attributes:
        items: (K, B, L), padded with 0 on the left; a model with fewer users has empty rows.
        sizes: how many positions each model learns from; n in all, model after model.
        shares: (K,) these sizes over what a batch holds on average, the weight of its mean loss.
        real: (n,) where these are in the flattened items.
        targets, users: (n,) what came next there, and in whose sequence.
    """

    items: Tensor
    sizes: list[int]
    shares: Tensor
    real: Tensor
    targets: Tensor
    users: Tensor


class Batches:
    """The training sequences of at least two items, in length-bucketed batches.

    A batch of short sequences holds few positions. Were its mean loss a step like any other, each
    of them would weigh many times what a long sequence's does (chapter 15 of the book computes it),
    so a batch says what share of a batch it is.
    """

    def __init__(self, train: Interactions, max_len: int, batch_size: int, device: torch.device):
        users = np.flatnonzero(train.lengths >= 2)
        if not len(users):
            raise ValueError(
                f"{train.name}: no user has two training events, so there is nothing "
                "to predict; use more data or a lower k-core"
            )
        self.max_len, self.batch_size, self.device = max_len, batch_size, device
        # A GPU wants few distinct shapes; a CPU as little padding as can be.
        self.multiple = 1 if device.type == "cpu" else 16
        # Positions of each sequence; the last row, number -1, is an empty one.
        self.counts = np.append(np.minimum(train.lengths[users] - 1, max_len), 0)
        ends = np.append(train.sequences.offsets[users + 1], 0)
        self._values, self._users, self._ends, self._counts = (
            torch.tensor(array, dtype=torch.int64, device=device)
            for array in (train.sequences.values, np.append(users, 0), ends, self.counts)
        )

    def __len__(self) -> int:
        return -(-(len(self.counts) - 1) // self.batch_size)

    def epoch(self, *rngs: np.random.Generator) -> Iterator[Batch]:
        """Every sequence once for each model, in the order that its generator draws."""
        orders = [bucketed_batches(self.counts[:-1], self.batch_size, rng) for rng in rngs]
        steps = [_table(rows) for rows in zip(*orders, strict=True)]
        sent = torch.from_numpy(np.concatenate([rows.ravel() for rows in steps])).to(self.device)
        sizes = np.stack([self.counts[rows].sum(1) for rows in steps])  # (steps, K)
        shares = torch.from_numpy(sizes / sizes.mean(0)).float().to(self.device)
        there = sent.split([rows.size for rows in steps])
        for rows, own, size, share in zip(steps, there, sizes.tolist(), shares, strict=True):
            length = -(-int(self.counts[rows].max()) // self.multiple) * self.multiple
            yield self._batch(own.view(rows.shape), min(length, self.max_len), size, share)

    def _batch(self, rows: Tensor, length: int, sizes: list[int], shares: Tensor) -> Batch:
        """The sequences ``rows`` (K, B), of each the last ``length`` positions."""
        shape, rows, total = rows.shape, rows.flatten(), sum(sizes)
        counts, device = self._counts[rows], self.device
        back = torch.arange(length, -1, -1, device=device)  # steps before the last event
        place = (self._ends[rows, None] - 1 - back).clamp(min=0)
        padded = torch.where(back <= counts[:, None], self._values[place], 0)
        # Real positions end each row: the k-th of all is k plus the padding up to its row.
        padding = (length - counts).cumsum(0)

        def spread(per_row: Tensor) -> Tensor:
            return per_row.repeat_interleave(counts, output_size=total)

        real = torch.arange(total, device=device) + spread(padding)
        targets = padded[:, 1:].flatten()[real]
        items = padded[:, :-1].unflatten(0, shape)
        return Batch(items, sizes, shares, real, targets, spread(self._users[rows]))


def _table(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Each model's rows, (K, B), filled up with -1."""
    table = np.full((len(rows), max(map(len, rows))), -1)
    for mine, theirs in zip(table, rows, strict=True):
        mine[: len(theirs)] = theirs
    return table


class Negatives:
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

    def __call__(self, batch: Batch, generators: Sequence[torch.Generator]) -> Tensor:
        """(n, count) items, for the n positions of a batch; each model's by its own generator."""
        users = batch.users[:, None]
        draws = torch.cat([
            torch.randint(2**62, (size, self.count), generator=own, device=users.device)
            for size, own in zip(batch.sizes, generators, strict=True)
        ])  # fmt: skip
        rank = draws % self.free[users] + 1
        thresholds = users * (self.num_items + 1) + rank
        passed = torch.searchsorted(self.thresholds, thresholds, right=True)
        return rank + passed - self.starts[users]
