"""What each position contributed to an attention block's output: weights are not the whole.

A large weight on a short vector moves little. The output of attention is a sum of vectors,

    outputs_i = sum_j t_ij + b_O,    t_ij = sum_h A^h_ij f^h(x_j),
    f^h(x) = (x W_V^h + b_V^h) W_O^h,

and the norm of t_ij tells how much key j moved query i (Kobayashi et al. 2020, arXiv
2004.10102; with residual and LayerNorm, 2021, arXiv 2109.07152; they write alpha for A).

The tensor of all terms, (B, L, L, D), is never built. A term is a combination of the H vectors
f^h(x_j), so with their Gram matrix G_j = (f^h(x_j) . f^g(x_j))_hg

    ||t_ij||^2 = a^T G_j a,    a = (A^1_ij .. A^H_ij),

in O(B H L^2) memory. Everything is computed in float64: where heads nearly cancel, a float32 sum
of squares has lost its digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from .capture import LayerTrace

__all__ = ["KINDS", "Contributions", "Parts", "WeightShares", "decompose"]

#: The four readings of a layer, as attributes of :class:`Parts`.
KINDS = ("weights", "attn", "attn_res", "attn_res_ln")

_CELLS = 2**19  # entries of a float64 map worked on at once: they should stay in the cache


def decompose(layer: LayerTrace) -> Parts:
    """Split what a block computed into contributions of positions.

    The terms come from the weights, the values and the model's parameters, never from the
    captured outputs by subtraction: that they add up to these is a test of both.

    Args:
        layer: an element of a trace. Needs ``weights``, ``values`` and ``allowed``; the kinds
            beyond ``attn`` also ``residual``, and ``attn_res_ln`` also ``total``.

    Example:
        >>> parts = decompose(capture(model, items)[0])                       # doctest: +SKIP
        >>> parts.attn_res_ln.mixing_ratio                                    # doctest: +SKIP
    """
    return Parts(layer)


class Parts:
    """One layer, read in four ways; each is computed when first asked for.

    Attributes:
        weights: Attn-W, the weights alone, heads averaged.
        attn: Attn-N, the terms t_ij; with their bias b_O they add up to the attention's output.
        attn_res: AttnRes-N, the residual joins the term j = i; they add up to z.
        attn_res_ln: AttnResLN-N, each term goes through the linear part of the LayerNorm that
            reads z; they add up to LN(z). In a "post" block that is the block's own; in "pre"
            and "original" LN(z) is what the feed-forward part reads.
    """

    def __init__(self, layer: LayerTrace):
        layer.need("weights", "allowed")
        self._layer = layer
        self._padding = ~layer.allowed.any(1).any(-1)  # (B, L)

    def __getitem__(self, kind: str) -> WeightShares | Contributions:
        if kind not in KINDS:
            raise KeyError(f"no kind is called {kind!r}; there are {', '.join(KINDS)}")
        return getattr(self, kind)

    @cached_property
    def weights(self) -> WeightShares:
        return WeightShares(self._layer.weights, self._padding)

    @cached_property
    def attn(self) -> Contributions:
        return Contributions(self._heads, self._output_bias)

    @cached_property
    def attn_res(self) -> Contributions:
        (residual,) = self._layer.need("residual")
        return Contributions(self._heads, self._output_bias, residual)

    @cached_property
    def attn_res_ln(self) -> Contributions:
        norm, residual, total = self._layer.need("reading_norm", "residual", "total")
        gamma, beta = (None if p is None else p.detach().double() for p in (norm.weight, norm.bias))

        def linear(x: Tensor) -> Tensor:
            """gamma (x - mean(x)); sigma_i divides later: it depends on the query alone."""
            x = x - x.mean(-1, keepdim=True)
            return x if gamma is None else gamma * x

        sigma = (total.double().var(-1, correction=0) + norm.eps).sqrt()  # (B, L)
        bias = linear(self._output_bias) / sigma[..., None]
        bias = bias if beta is None else bias + beta
        return Contributions(self._heads, bias, residual, linear, sigma)

    @cached_property
    def _heads(self) -> _Heads:
        weights, values = self._layer.need("weights", "values")
        return _Heads(weights, values, self._layer.projection, self._padding)

    @property
    def _output_bias(self) -> Tensor:
        matrices, output = self._heads.matrices, self._layer.projection
        if output is None or output.bias is None:
            return matrices.new_zeros(matrices.shape[-1])
        return output.bias.detach().double()


class WeightShares:
    """Attn-W: the weights themselves, averaged over heads; where they sum to one, r = 1 - A_ii.

    Attributes:
        norms: (B, query, key).
        preserving, mixing: (B, query), A_ii and the sum of the others.
        mixing_ratio: (B, query), NaN at padding; 0 where there is no other key.
        bias: 0; there is none.
    """

    bias = 0.0

    def __init__(self, weights: Tensor, padding: Tensor):
        self.norms = weights.mean(1)
        self.preserving = self.norms.diagonal(dim1=-2, dim2=-1)
        # Summed without the diagonal: a difference would leave crumbs where there is no other.
        self.mixing = self.norms.masked_fill(_eye(self.norms), 0.0).sum(-1)
        self.mixing_ratio = _ratio(self.mixing, self.preserving, padding)

    def norms_among(self, last: int) -> Tensor:
        """:attr:`norms` among the ``last`` most recent positions, (B, last, last)."""
        return self.norms[:, -last:, -last:]

    def terms(self, b: int, i: int) -> Tensor:
        """The weights of query ``i`` of sequence ``b``, (key,)."""
        return self.norms[b, i]


class Contributions:
    """The contribution of every key to every query, as vectors that add up.

    ``preserving + mixing + bias`` is what the block computed, at padding too, where nobody reads
    it; there the norms are 0 and the ratio is NaN.
    """

    def __init__(
        self,
        heads: _Heads,
        bias: Tensor,
        residual: Tensor | None = None,
        linear: Callable[[Tensor], Tensor] | None = None,
        sigma: Tensor | None = None,
    ):
        """
        Args:
            bias: (D,) or (B, L, D), what belongs to no position; float64.
            residual: (B, L, D) joins the term j = i.
            linear: a linear map of vectors (.., D) that every term goes through.
            sigma: (B, L) then divides all terms of a query.
        """
        self._heads, self._bias = heads, bias
        self._residual, self._linear, self._sigma = residual, linear or (lambda x: x), sigma

    @cached_property
    def norms(self) -> Tensor:
        """(B, query, key): || the contribution of the key to the query ||."""
        return self.norms_among(self._heads.weights.shape[-1])

    def norms_among(self, last: int) -> Tensor:
        """:attr:`norms` among the ``last`` most recent positions alone, (B, last, last)."""
        weights, values = self._heads.weights[..., -last:, -last:], self._heads.values[:, :, -last:]
        matrices = self._linear(self._heads.matrices)
        norms = torch.empty_like(weights[:, 0])
        for rows in _slices(weights):
            vectors = torch.einsum("bhjd,hde->bjhe", values[rows].double(), matrices)
            gram = vectors @ vectors.mT  # (b, key, H, H)
            norms[rows] = _quadratic(weights[rows].double(), gram).sqrt_()
        if self._sigma is not None:
            norms /= self._sigma[:, -last:, None]
        norms.diagonal(dim1=-2, dim2=-1).copy_(self._preserving.norm(dim=-1)[:, -last:])
        # torch's own layers give weights to padding, too
        return norms.masked_fill_(self._heads.padding[:, -last:, None], 0.0)

    @cached_property
    def _preserving(self) -> Tensor:
        own = self._heads.own
        return self._read(own if self._residual is None else own + self._residual)

    @cached_property
    def _mixing(self) -> Tensor:
        return self._read(self._heads.others)

    def _read(self, x: Tensor) -> Tensor:
        """(B, query, D), as what follows reads it."""
        x = self._linear(x)
        return x if self._sigma is None else x / self._sigma[..., None]

    @property
    def preserving(self) -> Tensor:
        """(B, query, D): p_i, the term j = i."""
        return self._preserving.to(self._heads.dtype)

    @property
    def mixing(self) -> Tensor:
        """(B, query, D): m_i, the sum of all other terms."""
        return self._mixing.to(self._heads.dtype)

    @property
    def bias(self) -> Tensor:
        """(D,), or (B, query, D) behind a LayerNorm: what belongs to no position."""
        return self._bias.to(self._heads.dtype)

    @property
    def total(self) -> Tensor:
        """(B, query, D): everything added up."""
        return (self._preserving + self._mixing + self._bias).to(self._heads.dtype)

    @cached_property
    def mixing_ratio(self) -> Tensor:
        """(B, query): ||m_i|| / (||m_i|| + ||p_i||); NaN at padding, 0 without another key."""
        mixing, preserving = self._mixing.norm(dim=-1), self._preserving.norm(dim=-1)
        return _ratio(mixing, preserving, self._heads.padding).to(self._heads.dtype)

    def terms(self, b: int, i: int) -> Tensor:
        """The vectors contributed to query ``i`` of sequence ``b``, (key, D).

        With :attr:`bias` they add up to the block's output at that position.
        """
        weights, values = self._heads.weights[b, :, i].double(), self._heads.values[b].double()
        terms = torch.einsum("hj,hjd,hde->je", weights, values, self._heads.matrices)
        if self._residual is not None:
            terms[i] += self._residual[b, i]
        terms = self._linear(terms)
        if self._sigma is not None:
            terms = terms / self._sigma[b, i]
        return terms.to(self._heads.dtype)


class _Heads:
    """What all kinds share: each query's own term and the sum of the others, no more."""

    def __init__(
        self, weights: Tensor, values: Tensor, projection: nn.Linear | None, padding: Tensor
    ):
        self.weights, self.values, self.padding = weights, values, padding
        self.dtype = values.dtype
        heads, width = values.shape[1], values.shape[-1]
        if projection is None:
            matrix = torch.eye(heads * width, dtype=torch.float64, device=values.device)
        else:
            matrix = projection.weight.detach().double().T
        self.matrices = matrix.unflatten(0, (heads, width))  # W_O^h, (H, D/H, D)

    @cached_property
    def own(self) -> Tensor:
        """t_ii = sum_h A^h_ii f^h(x_i), (B, L, D)."""
        own = self.weights.diagonal(dim1=-2, dim2=-1)[..., None].double() * self.values
        return self._project(own)

    @cached_property
    def others(self) -> Tensor:
        """The sum of t_ij over j != i, (B, L, D)."""
        values = self.values.double()
        sums = torch.empty_like(values)
        for rows in _slices(self.weights):
            weights = self.weights[rows].double()
            weights.diagonal(dim1=-2, dim2=-1).zero_()
            sums[rows] = weights @ values[rows]
        return self._project(sums)

    def _project(self, x: Tensor) -> Tensor:
        """(B, H, L, D/H), through the heads' matrices and summed -> (B, L, D)."""
        return x.transpose(1, 2).flatten(-2) @ self.matrices.flatten(0, 1)


def _quadratic(weights: Tensor, gram: Tensor) -> Tensor:
    """sum_hg A^h_ij A^g_ij G_j[h, g]: (b, H, query, key) and (b, key, H, H) -> (b, query, key)."""
    total = torch.zeros_like(weights[:, 0])
    for h in range(weights.shape[1]):
        row = weights[:, h] * gram[:, None, :, h, h]
        for g in range(h):  # G is symmetric
            row.addcmul_(weights[:, g], gram[:, None, :, h, g], value=2)
        total.addcmul_(weights[:, h], row)
    return total.clamp_(min=0)


def _ratio(mixing: Tensor, preserving: Tensor, padding: Tensor) -> Tensor:
    ratio = torch.where(mixing == 0, 0.0, mixing / (mixing + preserving))  # NaN stays NaN
    return ratio.masked_fill(padding, torch.nan)


def _eye(square: Tensor) -> Tensor:
    return torch.eye(square.shape[-1], dtype=torch.bool, device=square.device)


def _slices(weights: Tensor) -> Iterator[slice]:
    """Cut the batch so that the maps (b, H, L, L) of a slice are at most ``_CELLS`` numbers."""
    size = max(1, _CELLS // max(1, weights[0].numel()))
    return (slice(start, start + size) for start in range(0, len(weights), size))
