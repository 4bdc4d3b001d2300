"""How much a model mixes, how sharply it looks, and at what: one pass over a data set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.batching import pad
from ..data.interactions import Ragged
from ..data.splits import Part, Split
from ..evaluation.ranking import evaluating
from .capture import LayerTrace, capture
from .decompose import KINDS, Parts, decompose

__all__ = ["attention_statistics", "normalized_entropy"]

_KEEP = ("residual", "total", "weights", "values", "allowed")
_CELLS = 2**21  # entries of one layer's map held at once


def normalized_entropy(weights: Tensor, allowed: Tensor) -> Tensor:
    """How spread out each query's weights are: 1 over all its keys alike, 0 on one of them.

    -sum_j A_ij log A_ij / log |allowed(i)|, averaged over heads.

    Args:
        weights, allowed: (B, H, query, key).

    Returns:
        (B, query); NaN where fewer than two keys are allowed, padding included.
    """
    choices = allowed.sum(-1)
    entropy = torch.special.entr(weights).sum(-1) / choices.clamp(min=2).log()
    return entropy.masked_fill(choices < 2, torch.nan).mean(1)


def attention_statistics(
    model,
    data: Split | Part | Ragged,
    part: str = "test",
    *,
    recent: int = 15,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Mixing ratios, entropy and average maps of ``model`` over histories, in one pass.

    Each history's last ``model.max_len`` items are read. Memory does not grow with the number of
    histories. The statistics, by name, are the four mixing ratios of :func:`decompose`
    (``attn_w``, the weights alone; ``attn``, ``attn_res``, ``attn_res_ln``) and ``entropy``
    (:func:`normalized_entropy`). STOSA's are those of its means; ``covariance_attn_w`` and so on
    those of its covariances.

    Args:
        data: a split, of which ``part`` is read, a part, or the histories themselves.
        recent: K, the size of the average maps.
        device: where to compute; by default where the model is. The model comes back.
        progress: show a bar.

    Returns:
        Plain lists, numbers and None (where there is nothing to average), ready for JSON:

        - ``mixing``: {name: one mean per layer} over all non-padding positions, and
          ``{name}_last``, the mean over the last position of each history;
        - ``by_position``: {name: [layer][distance from the end]}, index 0 the last position;
        - ``by_length``: {name: [layer][length]}, means over the positions of the histories
          with so many items (at most ``max_len``); index 0 stays empty;
        - ``lengths``: how many histories have each length;
        - ``maps``: ``weights`` (heads averaged) and ``attn_res_ln`` (norms), [layer][query][key]
          among the K most recent items, each entry over the histories that reach so far back;
        - ``users``, ``positions``: how many there were of each.

    Raises:
        ValueError: there are no histories.
    """
    histories = histories_of(data, part)
    layers, max_len = len(model.blocks), model.max_len
    means: dict[str, _Means] = {}
    maps: dict[str, Tensor] = {}
    seen = torch.zeros(recent, dtype=torch.float64)
    with (
        evaluating(model, device),
        tqdm(total=len(histories), unit="user", disable=not progress) as bar,
    ):
        for rows in batches(histories.lengths, max_len, model.num_heads):
            items = pad(histories.select(rows), max_len)
            real = items > 0
            k = min(recent, items.shape[1])
            seen[recent - k :] += real[:, -k:].sum(0)
            trace = capture(model, items, keep=_KEEP)
            for number, layer in enumerate(trace):
                parts = decompose(layer)
                for name, values in _of_layer(layer, parts).items():
                    values = values.double().cpu()
                    means.setdefault(name, _Means(layers, max_len)).add(number, values, real)
                for name in {"weights", "attn_res_ln"} & set(_kinds(layer)):
                    total = maps.setdefault(name, seen.new_zeros(layers, recent, recent))
                    found = parts[name].norms_among(k).double().sum(0).cpu()
                    total[number, recent - k :, recent - k :] += found
            bar.update(len(rows))
    pairs = torch.minimum(seen[:, None], seen)  # padding is on the left: the earlier decides
    return {
        "users": len(histories),
        "positions": int(np.minimum(histories.lengths, max_len).sum()),
        "mixing": {name: x for name, m in means.items() for name, x in m.overall(name).items()},
        "by_position": {name: _plain(m.by_position) for name, m in means.items()},
        "by_length": {name: _plain(m.by_length) for name, m in means.items()},
        "lengths": np.bincount(np.minimum(histories.lengths, max_len), minlength=max_len + 1)
        .tolist(),
        "maps": {name: _plain(total / pairs) for name, total in maps.items()},
    }  # fmt: skip


class _Means:
    """Running means of one statistic: per layer, by distance from the end and by length."""

    def __init__(self, layers: int, max_len: int):
        self._position = torch.zeros(2, layers, max_len, dtype=torch.float64)  # sum, count
        self._length = torch.zeros(2, layers, max_len + 1, dtype=torch.float64)

    def add(self, layer: int, values: Tensor, real: Tensor) -> None:
        """values (B, L), NaN where there is nothing to count; real (B, L): no padding."""
        pair = torch.stack([values.nan_to_num(), (~values.isnan()).double()])  # (2, B, L)
        self._position[:, layer, : values.shape[1]] += pair.sum(1).flip(-1)
        self._length[:, layer].index_add_(1, real.sum(1), pair.sum(2))

    @property
    def by_position(self) -> Tensor:
        return self._position[0] / self._position[1]

    @property
    def by_length(self) -> Tensor:
        return self._length[0] / self._length[1]

    def overall(self, name: str) -> dict[str, list]:
        sums, counts = self._position.sum(-1)
        return {name: _plain(sums / counts), f"{name}_last": _plain(self.by_position[:, 0])}


def _of_layer(layer: LayerTrace, parts: Parts) -> dict[str, Tensor]:
    """Every statistic of one layer and batch, (B, L) each."""
    found = {"entropy": normalized_entropy(layer.weights, layer.allowed)}
    paths = {"": (layer, parts)}
    if layer.covariance is not None:
        paths["covariance_"] = (layer.covariance, decompose(layer.covariance))
    for prefix, (path, split) in paths.items():
        for kind in _kinds(path):
            name = "attn_w" if kind == "weights" else kind
            found[prefix + name] = split[kind].mixing_ratio
    return found


def _kinds(layer: LayerTrace) -> tuple[str, ...]:
    """What there is to measure: a block that drops its attention's output adds up nothing."""
    return KINDS if layer.total is not None else ("weights", "attn")


def histories_of(data: Split | Part | Ragged, part: str) -> Ragged:
    if isinstance(data, Split):
        data = data.part(part)
    histories = data.histories if isinstance(data, Part) else data
    if not len(histories):
        raise ValueError("there is nothing to measure: the part is empty")
    return histories


def batches(lengths: np.ndarray, max_len: int, num_heads: int) -> Iterator[np.ndarray]:
    """Rows of similar length, the longest first, as many as make ``_CELLS`` entries of a map."""
    lengths = np.minimum(lengths, max_len)
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        size = max(1, _CELLS // (num_heads * longest**2))
        yield order[start : start + size]
        start += size


def _plain(x: Tensor) -> list:
    """Nested lists; None for what is not a number."""
    if x.dim() > 1:
        return [_plain(row) for row in x]
    return [None if math.isnan(value) else value for value in x.tolist()]
