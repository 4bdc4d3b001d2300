"""One multi-head attention, told how its weights are made, and the block around it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .dropout import Dropout
from .weighting import Softmax, Weighting

__all__ = ["Attention", "Block", "allowed_pairs"]

NORMS = ("post", "pre", "original")


def allowed_pairs(items: Tensor) -> Tensor:
    """Which query may look at which key: j <= i and neither is padding. (B, L) -> (B, 1, L, L)."""
    real = items > 0
    length = items.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
    return (causal & real[:, None, :] & real[:, :, None])[:, None]


class Attention(nn.Module):
    """Causal multi-head attention with explicit weights (Vaswani et al. 2017).

    Weights come from ``self.weighting``: assign another and nothing else changes. There is one
    code path, so recording what happens changes nothing of it.

    Args:
        dim: D, a multiple of ``num_heads``.
        output: whether an output projection W_O follows (the SASRec authors' code has none).

    Attributes:
        recorder: None, or a function called in each forward pass with the keywords scores (or
            None), weights, values (B, H, L, D/H), sums (weights times values), outputs (B, L, D)
            and allowed (B, H, L, L).
    """

    def __init__(self, dim: int, num_heads: int = 1, dropout: float = 0.0, output: bool = True):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} cannot be divided among num_heads={num_heads}")
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.output = nn.Linear(dim, dim) if output else None
        self.dropout = Dropout(dropout)
        self.weighting: Weighting = Softmax()
        self.recorder: Callable[..., None] | None = None

    def forward(self, queries: Tensor, keys: Tensor, allowed: Tensor) -> Tensor:
        """queries, keys (B, L, D) and allowed (B, 1, L, L) -> (B, L, D).

        ``queries`` is what the query reads, ``keys`` what keys and values read.
        """
        allowed = allowed.expand(-1, self.num_heads, -1, -1)
        scores = self.scores(queries, keys) if self.weighting.uses_scores else None
        values = self.split(self.value(keys))
        weights = self.weighting(scores, allowed).to(values.dtype)
        sums = self.dropout(weights) @ values  # (B, H, L, D/H)
        outputs = sums.transpose(1, 2).flatten(-2)  # (B, L, D)
        if self.output is not None:
            outputs = self.output(outputs)
        if self.recorder is not None:
            self.recorder(
                scores=scores,
                weights=weights,
                values=values,
                sums=sums,
                outputs=outputs,
                allowed=allowed,
            )
        return outputs

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """S = Q K^T / sqrt(D/H), (B, H, L, L)."""
        query, key = self.split(self.query(queries)), self.split(self.key(keys))
        return query / math.sqrt(query.shape[-1]) @ key.mT

    def split(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, H, L, D/H)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Attention and feed-forward, with their residuals and LayerNorms.

    ``norm`` says where the LayerNorms stand (g and f are attention and feed-forward):

    - ``"post"``: z = x + g(x), u = LN(z), y = LN(u + f(u)). The norm analysis is defined on it.
    - ``"pre"``: z = x + g(LN(x)), y = z + f(LN(z)). Kang & McAuley 2018, section III.C.
    - ``"original"``: q = LN(x), z = q + g(query q; keys and values x), without an output
      projection; u = LN(z), y = u + f(u). Their released code.

    Attributes:
        recorder: None, or a function called in each forward pass with the keywords inputs
            (what the block received), residual (what is added to the attention's output) and
            total (z, their sum), each (B, L, D).
        residual_scale: multiplies the residual of the attention; 1 but for interventions.
    """

    def __init__(self, dim: int, num_heads: int = 1, dropout: float = 0.0, norm: str = "post"):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, not {norm!r}")
        self.norm = norm
        self.attention = Attention(dim, num_heads, dropout, output=norm != "original")
        self.norm_attention = nn.LayerNorm(dim)
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.dropout = Dropout(dropout)
        self.residual_scale = 1.0
        self.recorder: Callable[..., None] | None = None

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        drop, f = self.dropout, self.feed_forward
        if self.norm == "post":
            z = self.mix(x, x, drop(self.attention(x, x, allowed)))
            u = self.norm_attention(z)
            return self.norm_feed_forward(u + drop(f(u)))
        q = self.norm_attention(x)
        if self.norm == "pre":
            z = self.mix(x, x, drop(self.attention(q, q, allowed)))
            return z + drop(f(self.norm_feed_forward(z)))
        z = self.mix(x, q, self.attention(q, x, allowed))
        u = self.norm_feed_forward(z)
        return u + drop(f(u))

    def mix(self, inputs: Tensor, residual: Tensor, attended: Tensor) -> Tensor:
        """z: the residual plus what attention brought."""
        if self.residual_scale != 1.0:
            residual = self.residual_scale * residual
        total = residual + attended
        if self.recorder is not None:
            self.recorder(inputs=inputs, residual=residual, total=total)
        return total

    @property
    def reading_norm(self) -> nn.LayerNorm:
        """The LayerNorm that reads z."""
        return self.norm_attention if self.norm == "post" else self.norm_feed_forward
