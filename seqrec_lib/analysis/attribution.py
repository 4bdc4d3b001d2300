"""Which items of a history made the model recommend this one? Several answers, and a test.

Attention maps, norms and their rollouts are read off one forward pass; removing an item and
asking again is what they are held against.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from ..evaluation.ranking import evaluating
from ..models.sasrec import checked_items, last_position
from .capture import Trace, capture
from .decompose import decompose

__all__ = [
    "METHODS",
    "attribution_agreement",
    "item_contributions",
    "removal_effects",
    "rollout",
]

#: The ways of attributing a recommendation to the items of the history; "place" is the control.
METHODS = ("weights", "norms", "rollout", "norm_rollout", "gradient", "place")

_ROLLED = ("weights", "attn_res", "attn_res_ln")


def rollout(trace: Trace, kind: str = "weights") -> Tensor:
    """Where what is known at each position came from, followed down through all layers.

    One layer passes on a share R_ij of position j to position i, rows adding up to one; all of
    them, R^(last) ... R^(1).

    Args:
        kind: "weights": R = (A + I) / 2 with A averaged over heads, I standing for the residual
            (Abnar & Zuidema 2020, arXiv 2005.00928, equation 1). "attn_res" or "attn_res_ln": R
            is the norms of :func:`decompose`, which know how large the residual is, divided by
            their sum (Modarressi et al. 2022, arXiv 2205.03286, without the feed-forward part's
            LayerNorm).

    Returns:
        (B, query, position of the input); rows of padding are 0.

    Raises:
        ValueError: ``kind`` is none of these.
    """
    if kind not in _ROLLED:
        raise ValueError(f"kind must be one of {', '.join(_ROLLED)}, not {kind!r}")
    shares = None
    for layer in trace:
        share = decompose(layer)[kind].norms
        if kind == "weights":
            real = layer.allowed.any(1).any(-1)
            share = (share + torch.diag_embed(real.to(share.dtype))) / 2
        share = _rows_to_one(share)
        shares = share if shares is None else share @ shares
    return shares


def item_contributions(model, items, target=None, method: str = "norm_rollout") -> Tensor:
    """How much each item of a history had to do with the recommendation that follows it.

    - ``weights``: the last position's weights, averaged over heads and layers.
    - ``norms``: its AttnResLN-N norms as shares of their sum, averaged over layers.
    - ``rollout``, ``norm_rollout``: its row of :func:`rollout`, of weights and of those norms.
    - ``gradient``: embedding times gradient of the target's score, the first-order effect of
      scaling the item's embedding to 0. It alone looks at the target, and has a sign.
    - ``place``: 1, 2, ... from the oldest item to the latest, as shares. It knows neither model
      nor items, only recency: what another method has to beat.

    Args:
        items: (B, L), or one history (L,); 0 = padding on the left.
        target: (B,) the items whose scores are explained, or one for all; by default what the
            model recommends first. The maps do not depend on it.

    Returns:
        (B, L); 0 at padding.

    Raises:
        ValueError: ``method`` is not one of :data:`METHODS`, or there are not as many targets as
            histories.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    items, target = _question(model, items, target)
    if method == "gradient":
        return _embedding_times_gradient(model, items, target)
    if method == "place":
        real = items > 0
        return _rows_to_one((real.cumsum(-1) * real).float())
    trace = capture(model, items, keep=("weights", "values", "residual", "total", "allowed"))
    if method == "rollout":
        return rollout(trace, "weights")[:, -1]
    if method == "norm_rollout":
        return rollout(trace, "attn_res_ln")[:, -1]
    kind = "weights" if method == "weights" else "attn_res_ln"
    rows = [_rows_to_one(decompose(layer)[kind].norms[:, -1]) for layer in trace]
    return torch.stack(rows).mean(0)


@torch.no_grad()
def removal_effects(model, items, target=None, batch_size: int = 256) -> Tensor:
    """What the target's score loses when one item is taken out of the history, for each item.

    The history closes up: earlier items move one place towards the end. L histories are read
    for each of the B.

    Args:
        items, target: as for :func:`item_contributions`.
        batch_size: histories encoded at once.

    Returns:
        (B, L), positive where the item spoke for the target; NaN at padding, and where it is the
        only item.
    """
    items, target = _question(model, items, target)
    length = items.shape[1]
    place = torch.arange(length, device=items.device)
    # Without j: what was before it moves up, and what then stands first is padding.
    source = torch.where(place > place[:, None], place, place - 1)  # (j, place)
    without = torch.where(source >= 0, items[:, source.clamp(min=0)], 0)  # (B, j, place)
    row, j = ((items > 0) & ((items > 0).sum(1, keepdim=True) > 1)).nonzero(as_tuple=True)
    with evaluating(model, None):
        whole = _score(model, items, target)
        effects = whole.new_full(items.shape, torch.nan)
        for at in torch.arange(len(row), device=items.device).split(batch_size):
            b = row[at]
            effects[b, j[at]] = whole[b] - _score(model, without[b, j[at]], target[b])
    return effects


def attribution_agreement(
    model, items, target=None, methods: tuple[str, ...] = METHODS
) -> dict[str, np.ndarray]:
    """Does an attribution order the items as removing them does?

    Spearman's correlation, within each history, of the contributions' sizes with the sizes of
    :func:`removal_effects`: 1, the same order; 0, none.

    Args:
        items, target: as for :func:`item_contributions`.

    Returns:
        {method: (B,) one correlation per history}; NaN for histories of fewer than three items,
        and where all contributions are equal.
    """
    items, target = _question(model, items, target)
    effects = removal_effects(model, items, target).abs().cpu().numpy()
    found = {}
    for method in methods:
        sizes = item_contributions(model, items, target, method).abs().cpu().numpy()
        found[method] = np.array([_spearman(*pair) for pair in zip(sizes, effects, strict=True)])
    return found


def _spearman(contributions: np.ndarray, effects: np.ndarray) -> float:
    known = ~np.isnan(effects)
    x, y = contributions[known], effects[known]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    return float(stats.spearmanr(x, y).statistic)


def _embedding_times_gradient(model, items: Tensor, target: Tensor) -> Tensor:
    """sum_d e_jd d(score) / d(e_jd), over every embedding the items go through. (B, L)."""
    read: list[Tensor] = []

    def keep(module: nn.Embedding, inputs, output: Tensor) -> Tensor:
        read.append(output.detach().requires_grad_())
        return read[-1]

    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    hooks = [table.register_forward_hook(keep) for table in tables]
    try:
        with evaluating(model, None), torch.enable_grad():
            score = _score(model, items, target).sum()
            gradients = torch.autograd.grad(score, read)
    finally:
        for hook in hooks:
            hook.remove()
    return sum((e.detach() * g).sum(-1) for e, g in zip(read, gradients, strict=True))


def _question(model, items, target) -> tuple[Tensor, Tensor]:
    """(items (B, L), target (B,)), on the model's device, checked."""
    items = torch.atleast_2d(checked_items(model, items))
    if target is None:
        return items, model.recommend(items, 1)[0][:, 0]
    target = torch.atleast_1d(torch.as_tensor(target))
    if target.shape not in {(1,), (len(items),)}:
        raise ValueError(
            f"targets of shape {tuple(target.shape)} for {len(items)} histories: "
            "pass one for each, or one for all"
        )
    if (target == 0).any():
        raise ValueError("target 0 is padding, which has no score")
    return items, checked_items(model, target[:, None])[:, 0].expand(len(items))


def _score(model, items: Tensor, target: Tensor) -> Tensor:
    """(B,) the scores of the targets after the histories."""
    return model.score(last_position(model.encode(items))).gather(1, target[:, None])[:, 0]


def _rows_to_one(x: Tensor) -> Tensor:
    total = x.sum(-1, keepdim=True)
    return x / total.masked_fill(total == 0, 1.0)
