"""Where does a model rank what really came next, among all items?

The whole catalogue is ranked, yet nothing is sorted: a target's rank is one more than the
number of items scored above it, so two comparisons and a sum per score do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.batching import pad
from ..data.interactions import Ragged
from ..data.splits import Split
from ..device import device as pick_device
from ..models.sasrec import evaluation_mode, last_position
from .metrics import KS, Metrics

__all__ = ["evaluate", "evaluating"]

# Scores held at once. On a CPU a chunk should stay in the cache: it is read four times.
_CELLS_CPU, _CELLS_GPU = 2**21, 2**26

# Positions encoded at once on a CPU, for the same reason (benchmarks/bench_ranking.py).
_POSITIONS_CPU = 2**13


def evaluate(
    model,
    split: Split,
    part: str = "test",
    ks: Sequence[int] = KS,
    filter_seen: bool = False,
    *,
    sampled: int | None = None,
    sampled_by: str = "uniform",
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Metrics:
    """Rank each user's target among all items.

    The model may be neural, with ``encode``, ``queries`` and ``readout``, or anything with
    ``score_histories(histories) -> (n, num_items + 1)``, such as a baseline or a few lines
    around a model of your own. A neural model is evaluated in ``eval`` mode and left in the
    mode it was in.

    Args:
        model: what to evaluate.
        split: where its users come from.
        part: "test" or "validation".
        ks: the cut-offs K of HR@K and NDCG@K.
        filter_seen: leave the items of the user's history out of the ranking, but never the
            target. Whichever is chosen, the other comes for free:
            ``evaluate(...).filtered``, ``evaluate(...).unfiltered``.
        sampled: rank the target among this many items that the user has not met, not among
            all. Only to show what that does to conclusions (Krichene & Rendle 2020).
        sampled_by: draw those items "uniform"ly, or by "popularity" in training; without
            replacement in both cases.
        seed: of the draw; models evaluated with one seed meet the same negatives.
        batch_size: users encoded at once; by default as many as make some 8,192 positions, 16 to
            256, and on a GPU 2,048.
        device: where to compute; by default where the model is. The model comes back.
        progress: show a bar.

    Returns:
        The metrics, and what is needed to recompute them for any user, K or group.

    Raises:
        ValueError: a score is NaN (the message names the user), the model knows another
            number of items than the split or scores another, the part is empty, a cut-off is no
            whole number from 1, or ``sampled`` is no number of items.
        TypeError: the model has none of the methods above.
    """
    neural = isinstance(model, nn.Module) and hasattr(model, "readout")
    if not hasattr(model, "num_items") or not (neural or hasattr(model, "score_histories")):
        raise TypeError(
            f"cannot evaluate a {type(model).__name__}: it needs num_items, and either "
            "score_histories(histories) or, as a torch module, encode, queries and readout"
        )
    if any(k != int(k) or k < 1 for k in ks):
        raise ValueError(f"ks are whole numbers from 1, got {tuple(ks)}")
    users = split.part(part)
    if not len(users):
        raise ValueError(f"the {part} part is empty: there is nobody to evaluate on")
    if model.num_items != split.num_items:
        raise ValueError(
            f"the model knows {model.num_items} items and the split has {split.num_items}; "
            "evaluate it on the data it was made for"
        )
    if sampled is not None:
        draw = _Negatives(sampled, sampled_by, split, seed)
    rows, found = [], []
    with (
        evaluating(model, device),
        torch.inference_mode(),
        tqdm(total=len(users), unit="user", desc=part, disable=not progress) as bar,
    ):
        for chunk, scores in _score_chunks(model, users.histories, batch_size):
            targets = torch.from_numpy(users.targets[chunk]).to(scores.device)
            known = users.seen.select(chunk)
            if sampled is None:
                counts = _count(scores, targets, known)
            else:
                counts = _count_among(scores, targets, draw(users.targets[chunk], known))
            rows.append(chunk)
            found.append(counts)
            bar.update(len(chunk))
    counts = np.empty((len(users), 5), dtype=np.int64)
    counts[np.concatenate(rows)] = torch.cat(found).cpu().numpy()
    above, equal, seen_above, seen_equal, nan = counts.T
    if nan.any():
        first = users.users[np.flatnonzero(nan)[0]]
        raise ValueError(
            f"the model gives NaN scores to {nan.sum()} of {len(users)} users, first to user "
            f"{first} (row of the data that was split); a NaN can be ranked nowhere"
        )
    return Metrics(
        above, equal, ks, seen_above=seen_above, seen_equal=seen_equal, filter_seen=filter_seen
    )


def _score_chunks(
    model, histories: Ragged, batch_size: int | None
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield (rows (u,), scores (u, num_items)); column j is item j + 1, padding has none.

    Users of similar length share a batch, the longest first, so that little padding is
    computed and too large a batch fails at once.
    """
    order = np.argsort(-histories.lengths, kind="stable")
    if hasattr(model, "score_histories"):
        for rows in _every(order, _users_at_once(model.num_items)):
            scores = torch.as_tensor(model.score_histories(histories.select(rows)))
            if scores.shape != (len(rows), model.num_items + 1):
                raise ValueError(
                    f"score_histories gave scores of shape {tuple(scores.shape)} for {len(rows)} "
                    f"histories; they must be {(len(rows), model.num_items + 1)}: a column for "
                    "each item by its number, and column 0 for padding"
                )
            yield rows, scores[:, 1:]
        return
    table, bias = model.readout()
    at_once = _users_at_once(model.num_items, table.device.type)
    if table.device.type != "cpu":
        batch_size = batch_size or 2_048
    lengths = histories.lengths.clip(1, model.max_len)
    for batch in _every(order, batch_size) if batch_size else _of_like_size(order, lengths):
        items = pad(histories.select(batch), model.max_len)
        queries = model.queries(last_position(model.encode(items.to(table.device))))
        for start in range(0, len(batch), at_once):
            scores = queries[start : start + at_once] @ table[1:].T
            yield batch[start : start + at_once], scores if bias is None else scores + bias[1:]


def _count(scores: Tensor, targets: Tensor, seen: Ragged) -> Tensor:
    """Count the items above and equal to the target: all of them, and the seen ones.

    Args:
        scores: (u, num_items).
        targets: (u,) item numbers.
        seen: per user the distinct items to be filtered, the target not among them.

    Returns:
        (u, 5): above, equal, seen and above, seen and equal, whether a score is NaN.
    """
    # The target's score is read from the same products it is compared with: computed anew,
    # it could differ in the last bit and not even equal itself.
    target = scores.gather(1, targets[:, None] - 1)
    # Comparisons written as floats sum many times faster than booleans do, and 0/1 sums in
    # float32 are exact up to 2**24 items.
    buffer = torch.empty_like(scores, dtype=torch.float32)
    above = torch.gt(scores, target, out=buffer).sum(1)
    at_least = torch.ge(scores, target, out=buffer).sum(1)
    nan = scores.amax(1).isnan()  # the maximum of anything with a NaN is NaN
    owner = torch.from_numpy(seen.owner).to(scores.device)
    known = scores[owner, torch.from_numpy(seen.values - 1).to(scores.device)]
    count = lambda hits: torch.zeros_like(above).index_add_(0, owner, hits.float())  # noqa: E731
    seen_above, seen_equal = count(known > target[owner, 0]), count(known == target[owner, 0])
    return torch.stack([above, at_least - above - 1, seen_above, seen_equal, nan], 1).long()


def _count_among(scores: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """:func:`_count` for the target among ``negatives`` (u, m), none of which is seen."""
    among = scores.gather(1, negatives.to(scores.device) - 1)
    target = scores.gather(1, targets[:, None] - 1)
    above, equal = (among > target).sum(1), (among == target).sum(1)
    zero = torch.zeros_like(above)
    return torch.stack([above, equal, zero, zero, scores.amax(1).isnan()], 1).long()


class _Negatives:
    """Draws items a user has not met: ``draw(targets (u,), seen) -> (u, size)`` items."""

    def __init__(self, size: int, by: str, split: Split, seed: int):
        if by not in ("uniform", "popularity"):
            raise ValueError(f"sampled_by must be 'uniform' or 'popularity', got {by!r}")
        if size < 1:
            raise ValueError(f"sampled must be at least 1, got {size}; None ranks all items")
        counts = split.train.item_counts[1:]
        self.size, self.rng = size, np.random.default_rng(seed)
        self.rate = (counts if by == "popularity" else np.ones_like(counts)).astype(np.float32)

    def __call__(self, targets: np.ndarray, seen: Ragged) -> Tensor:
        # Each item rings after an exponential time at its rate; the first to ring are a
        # sample without replacement, with the rates as weights.
        shape = len(targets), len(self.rate)
        time = self.rng.standard_exponential(shape, dtype=np.float32)
        with np.errstate(divide="ignore"):
            time /= self.rate
        time[np.arange(len(targets)), targets - 1] = np.inf
        time[seen.owner, seen.values - 1] = np.inf
        if np.isfinite(time).sum(1).min() < self.size:
            raise ValueError(
                f"cannot draw {self.size} items that a user has not met: some user has only "
                f"{np.isfinite(time).sum(1).min()}; ask for fewer with sampled="
            )
        first = np.argpartition(time, self.size - 1, axis=1)[:, : self.size]
        return torch.from_numpy(first + 1)


@contextmanager
def evaluating(model, device: torch.device | str | None) -> Iterator[None]:
    """Put a neural model into eval mode, on ``device``; then back where and as it was."""
    if not isinstance(model, nn.Module):
        yield
        return
    home = next((p.device for p in model.parameters()), None)
    try:
        with evaluation_mode(model):
            if device is not None:
                model.to(pick_device(device))
            yield
    finally:
        if device is not None and home is not None:
            model.to(home)


def _users_at_once(num_items: int, kind: str = "cpu") -> int:
    return max(16, (_CELLS_CPU if kind == "cpu" else _CELLS_GPU) // num_items)


def _of_like_size(rows: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Rows in order, the longest first; of short histories more at once."""
    while len(rows):
        size = min(max(_POSITIONS_CPU // lengths[rows[0]], 16), 256)
        yield rows[:size]
        rows = rows[size:]


def _every(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
