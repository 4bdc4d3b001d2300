"""STOSA: items and histories as Gaussians, compared by distance (Fan et al. 2022, 2201.06035).

A Gaussian is a pair (mean, covariance) of two tensors (..., D): covariances are diagonal, so
the second holds variances. Between diagonal Gaussians the squared 2-Wasserstein distance is

    W2^2 = ||mean_i - mean_j||^2 + ||std_i - std_j||^2,

an ordinary distance between the points (mean, std), and so one matrix product.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, Block, allowed_pairs
from .dropout import Dropout
from .sasrec import SequentialModel, seeded
from .weighting import Weighting, positive, squared_distances

__all__ = ["STOSA", "Gaussian", "StochasticAttention", "StochasticBlock"]

Gaussian = tuple[Tensor, Tensor]


def as_point(gaussian: Gaussian) -> Tensor:
    """(mean, standard deviation) side by side, (..., 2D): distances between these are W2."""
    mean, covariance = gaussian
    return torch.cat([mean, covariance.sqrt()], -1)


class StochasticAttention(Attention):
    """Multi-head attention between Gaussians (Fan et al. 2022).

    Scores are negative distances between Gaussian queries and keys; a sum of independent
    Gaussians with weights A has mean A mu and covariance A^2 sigma^2, and so has the output.

    Attributes:
        recorder: as in :class:`Attention`, of the means; called with covariance_values,
            covariance_sums and covariance_outputs besides, of the same shapes.
    """

    def __init__(self, dim: int, num_heads: int = 1, dropout: float = 0.0):
        super().__init__(dim, num_heads, dropout)
        self.covariance_query, self.covariance_key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.covariance_value, self.covariance_output = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, mean: Tensor, covariance: Tensor, allowed: Tensor) -> Gaussian:
        """mean, covariance (B, L, D) and allowed (B, 1, L, L) -> two (B, L, D).

        The second is no covariance yet: the block's ELU + 1 makes it one.
        """
        allowed = allowed.expand(-1, self.num_heads, -1, -1)
        scores = self.scores(mean, covariance) if self.weighting.uses_scores else None
        values = self.split(self.value(mean))
        covariance_values = self.split(positive(self.covariance_value(covariance)))
        weights = self.weighting(scores, allowed).to(values.dtype)
        kept = self.dropout(weights)  # one draw for both, as in the authors' code
        sums, covariance_sums = kept @ values, kept.square() @ covariance_values
        outputs = self.output(sums.transpose(1, 2).flatten(-2))
        covariance_outputs = self.covariance_output(covariance_sums.transpose(1, 2).flatten(-2))
        if self.recorder is not None:
            self.recorder(
                scores=scores,
                weights=weights,
                values=values,
                sums=sums,
                outputs=outputs,
                allowed=allowed,
                covariance_values=covariance_values,
                covariance_sums=covariance_sums,
                covariance_outputs=covariance_outputs,
            )
        return outputs, covariance_outputs

    def scores(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """S = -W2^2 / sqrt(D/H) between the Gaussians of queries and keys, (B, H, L, L)."""
        query = self.query(mean), positive(self.covariance_query(covariance))
        key = self.key(mean), positive(self.covariance_key(covariance))
        query, key = (as_point(tuple(map(self.split, gaussian))) for gaussian in (query, key))
        distances = squared_distances(query, key).to(mean.dtype)
        return -distances / math.sqrt(mean.shape[-1] / self.num_heads)


class StochasticBlock(Block):
    """The post-norm block, twice: one path for means, one for covariances; one set of weights.

    ``recorder`` and ``residual_scale`` concern the path of the means, as in :class:`Block`.

    Args:
        mean_attention: False returns the means as they came, see :class:`STOSA`.
    """

    def __init__(
        self, dim: int, num_heads: int = 1, dropout: float = 0.0, mean_attention: bool = True
    ):
        super().__init__(dim, num_heads, dropout, norm="post")
        self.attention = StochasticAttention(dim, num_heads, dropout)
        self.feed_forward, self.covariance_feed_forward = _feed_forward(dim), _feed_forward(dim)
        self.covariance_norm_attention = nn.LayerNorm(dim)
        self.covariance_norm_feed_forward = nn.LayerNorm(dim)
        self.mean_attention = mean_attention

    def forward(self, mean: Tensor, covariance: Tensor, allowed: Tensor) -> Gaussian:
        drop = self.dropout
        attended, covariance_attended = self.attention(mean, covariance, allowed)
        u = self.covariance_norm_attention(covariance + drop(covariance_attended))
        u = self.covariance_norm_feed_forward(u + drop(self.covariance_feed_forward(u)))
        covariance = positive(u)
        if not self.mean_attention:
            return mean, covariance
        u = self.norm_attention(self.mix(mean, mean, drop(attended)))
        return self.norm_feed_forward(u + drop(self.feed_forward(u))), covariance


class STOSA(SequentialModel):
    """Stochastic self-attention: every item is a Gaussian, what it means and how surely.

    Items and positions have a mean and a covariance embedding; their sums, through a LayerNorm
    (the covariances then through ELU + 1), enter blocks of Wasserstein attention. The item
    whose Gaussian is nearest to that of the history is recommended first.

    The paper leaves some things open; the blocks are post-norm, as in the authors' code. Unlike
    there, means and covariances have LayerNorms of their own, the feed-forward parts have width
    D (4D there), and the means' embedding goes through no ELU. Train it with ``loss="bpr"``,
    which adds :meth:`regularizer`; any other loss works.

    Args:
        num_items, max_len, dim, num_blocks, num_heads, dropout, attention, seed: as for
            :class:`SASRec`. The weighting reads -W2^2 / sqrt(D/H) as its scores.
        mean_attention: False repeats a slip of the authors' released code, where each layer's
            means go to a misspelt variable: every layer reads the embedded means, nothing is
            ever mixed into them, and attention acts through the covariances alone.
        regularization: the weight of :meth:`regularizer`; 0.1 is the default of the authors' code,
            and 0.005 what their published command sets. The larger one governs the first epochs,
            and validation may stand still for dozens of them.

    Raises:
        ValueError: a size is not positive, or dim is not a multiple of num_heads.
    """

    gaussian = True

    def __init__(
        self,
        num_items: int,
        max_len: int = 50,
        dim: int = 64,
        num_blocks: int = 2,
        num_heads: int = 1,
        dropout: float = 0.2,
        attention: str | dict[str, Any] | Weighting = "wasserstein",
        mean_attention: bool = True,
        regularization: float = 0.1,
        seed: int | None = None,
    ):
        super().__init__(
            num_items, max_len, dim, num_blocks, num_heads, dropout=dropout,
            mean_attention=mean_attention, regularization=regularization,
        )  # fmt: skip
        self.regularization, self.seed = regularization, seed
        with seeded(seed):
            self.items, self.covariance_items = (
                nn.Embedding(num_items + 1, dim, padding_idx=0) for _ in range(2)
            )
            self.positions, self.covariance_positions = (
                nn.Parameter(torch.empty(max_len, dim)) for _ in range(2)
            )
            self.norm, self.covariance_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
            self.blocks = nn.ModuleList(
                StochasticBlock(dim, num_heads, dropout, mean_attention) for _ in range(num_blocks)
            )
            self.dropout = Dropout(dropout)
            self.reset_parameters()
            self.set_weighting(attention)  # last, so that all else starts equal

    def reset_parameters(self) -> None:
        """As in SASRec. Covariance embeddings near 0 make variances near 1."""
        for table in (self.items, self.covariance_items):
            nn.init.normal_(table.weight, std=0.05)
            with torch.no_grad():
                table.weight[0] = 0
        nn.init.normal_(self.positions, std=0.05)
        nn.init.normal_(self.covariance_positions, std=0.05)

    def encode(self, items: Tensor) -> Gaussian:
        """items (B, L), on any device -> (mean, covariance) of what comes next, two (B, L, D)."""
        self.check_items(items)
        items = items.to(self.positions.device)
        length, allowed = items.shape[1], allowed_pairs(items)
        mean = self.items(items) + self.positions[-length:]
        covariance = self.covariance_items(items) + self.covariance_positions[-length:]
        mean = self.dropout(self.norm(mean))
        covariance = positive(self.dropout(self.covariance_norm(covariance)))
        for block in self.blocks:
            mean, covariance = block(mean, covariance, allowed)
        return mean, covariance

    def item_gaussians(self) -> Gaussian:
        """(mean, covariance) of every item, two (num_items + 1, D); row 0 is padding's."""
        return self.items.weight, positive(self.covariance_items.weight)

    def queries(self, encoded: Gaussian) -> Tensor:
        """(2 mean, 2 std), (..., 2D)."""
        return 2 * as_point(encoded)

    def readout(self) -> tuple[Tensor, Tensor]:
        """((mean, std) of the items (num_items + 1, 2D), -||that||^2).

        W2^2 is a squared distance between points: -||q - e||^2 = 2 q e - ||e||^2 - ||q||^2, and
        the last term is the same for all items.
        """
        table = as_point(self.item_gaussians())
        return table, -table.square().sum(-1)

    def score(self, encoded: Gaussian) -> Tensor:
        """-W2^2 to every item, (..., num_items + 1); padding's, [..., 0], is -inf."""
        logits = -squared_distances(as_point(encoded), as_point(self.item_gaussians()))
        logits[..., 0] = -math.inf
        return logits

    def regularizer(self, encoded: Gaussian, targets: Tensor, negatives: Tensor) -> Tensor:
        """The mean of max(0, W2^2(history, target) - W2^2(target, negative)), weighted.

        BPR asks only that the target be nearer than the negative; this asks the negative to be
        further from the target than the history is (Fan et al. 2022).

        Args:
            encoded: two (n, D). targets: (n,). negatives: (n, k).
        """
        table = as_point(self.item_gaussians())
        target = F.embedding(targets, table)
        near = (as_point(encoded) - target).square().sum(-1)
        far = (target[:, None] - F.embedding(negatives, table)).square().sum(-1)
        return self.regularization * (near[:, None] - far).clamp(min=0).mean()


def _feed_forward(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ELU(), nn.Linear(dim, dim))
