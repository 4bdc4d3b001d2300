"""What a refinement learned of positions alone: its mean over many sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.batching import pad
from ..data.interactions import Ragged
from ..data.splits import Part, Split
from ..evaluation.ranking import evaluating
from ..models.weighting import Refined, Weighting, masked_softmax
from .intervene import intervene
from .statistics import batches, histories_of

__all__ = ["RefinementByPosition", "refinement_by_position"]


class RefinementByPosition(Weighting):
    """A refinement with its learned part replaced by a map that never looks at items.

    S' = S + M where the refinement adds to the scores, S' = M where it takes their place.

    Args:
        mean: M, (H, n, n), aligned at the end: entry [-1, -1] is the last item's own.
        adds: as :attr:`~seqrec_lib.models.weighting.Refined.adds`.
    """

    name = "refinement-by-position"

    def __init__(self, mean: Tensor, adds: bool):
        super().__init__()
        self.register_buffer("mean", mean)
        self.adds = self.uses_scores = adds

    def forward(self, scores, allowed):
        length = allowed.shape[-1]
        refined = self.mean[:, -length:, -length:].expand(allowed.shape)
        return masked_softmax(scores + refined if self.adds else refined, allowed)


@torch.no_grad()
def refinement_by_position(
    model, data: Split | Part | Ragged, part: str = "validation"
) -> list[RefinementByPosition]:
    """For each layer of a refined model, what its refinement is on average at each pair of places.

    Swapped in, it tells how much of what the refinement does depends on the items at all::

        with sr.intervene(model, sr.refinement_by_position(model, split)):
            sr.evaluate(model, split)

    Args:
        model: trained with an ``awrsr-`` weighting.
        data: histories, of each of which the last ``model.max_len`` items are read.

    Returns:
        one weighting for each layer. A correlation threshold is not kept.

    Raises:
        ValueError: the model's weighting is no refinement, or there are no histories.
    """
    originals = [block.attention.weighting for block in model.blocks]
    if not all(isinstance(weighting, Refined) for weighting in originals):
        names = ", ".join(dict.fromkeys(weighting.name for weighting in originals))
        raise ValueError(f"only a refinement (awrsr-..) can be averaged; the model has {names}")
    histories = histories_of(data, part)
    watching = [_Averaging(weighting, model) for weighting in originals]
    home = next(model.parameters()).device
    with evaluating(model, None), intervene(model, watching):
        for rows in batches(histories.lengths, model.max_len, model.num_heads):
            model.encode(pad(histories.select(rows), model.max_len).to(home))
    return [RefinementByPosition(each.mean, each.refinement.adds) for each in watching]


class _Averaging(Weighting):
    """A refinement that is watched: what it makes of the scores is summed, pair by pair."""

    name = "averaging"

    def __init__(self, refinement: Refined, model):
        super().__init__()
        self.refinement = refinement
        sums = torch.zeros(2, model.num_heads, model.max_len, model.max_len, dtype=torch.float64)
        self.register_buffer("sums", sums.to(next(model.parameters()).device))  # values, counts

    @property
    def mean(self) -> Tensor:
        values, counts = self.sums
        return (values / counts.clamp(min=1)).float()  # where nobody was ever, nothing is added

    def forward(self, scores, allowed):
        refined = self.refinement.refine(self.refinement.tokens(scores, allowed), scores, allowed)
        learned = (refined - scores if self.refinement.adds else refined).masked_fill(~allowed, 0)
        length = allowed.shape[-1]
        self.sums[0, :, -length:, -length:] += learned.double().sum(0)
        self.sums[1, :, -length:, -length:] += allowed.sum(0)
        return self.refinement(scores, allowed)
