"""From ragged histories to padded batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from .interactions import Ragged

__all__ = ["bucketed_batches", "pad"]


def pad(sequences: Ragged, max_len: int) -> torch.Tensor:
    """Each sequence's last ``max_len`` items, padded with 0 on the left.

    Returns:
        (n, length of the longest, at least 1) int64.
    """
    kept = np.minimum(sequences.lengths, max_len)
    length = max(int(kept.max(initial=0)), 1)
    place = np.arange(length) - (length - kept[:, None])  # (n, length), < 0 = padding
    source = (sequences.offsets[1:] - kept)[:, None] + place
    padded = np.where(
        place >= 0, sequences.values[np.maximum(source, 0)] if len(sequences.values) else 0, 0
    )
    return torch.from_numpy(padded.astype(np.int64, copy=False))


def bucketed_batches(
    lengths: np.ndarray, batch_size: int, rng: np.random.Generator, window: int = 50
) -> Iterator[np.ndarray]:
    """Batches of sequences of similar length, in random order: an epoch without much padding.

    Sequences are shuffled, sorted by length within windows of ``window`` batches, cut into
    batches, and the batches shuffled; every sequence comes exactly once.

    Yields:
        row numbers (at most batch_size,).
    """
    order = rng.permutation(len(lengths))
    size = batch_size * window
    batches = []
    for start in range(0, len(order), size):
        part = order[start : start + size]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    for i in rng.permutation(len(batches)):
        yield batches[i]
