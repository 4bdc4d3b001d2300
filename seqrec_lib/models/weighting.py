"""The ways of making attention weights: one object, which can be swapped.

A weighting turns scores into weights::

    weights = weighting(scores, allowed)      # all of shape (batch, heads, query, key)

``allowed[b, h, i, j]`` says whether query ``i`` may look at key ``j``: ``j <= i`` and
neither is padding. Weights are returned before dropout; each row sums to one over its
allowed keys and is zero elsewhere, and rows of padding are zero throughout.

Training with another weighting, swapping one into a trained model, refining the weights,
shuffling them: all are the same swap of this one object.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..device import full_precision

__all__ = [
    "WEIGHTINGS",
    "Last",
    "Positional",
    "Random",
    "Recency",
    "Refined",
    "RefinedAdditive",
    "RefinedSimple",
    "RefinedStochastic",
    "RefinedValue",
    "Shuffled",
    "Softmax",
    "SoftmaxPositional",
    "Uniform",
    "Wasserstein",
    "Weighting",
    "make_weighting",
    "masked_softmax",
]


def masked_softmax(scores: Tensor, allowed: Tensor) -> Tensor:
    """softmax over the allowed keys; zero elsewhere, and in rows that allow none."""
    return _MaskedSoftmax.apply(scores, allowed)


class _MaskedSoftmax(torch.autograd.Function):
    """As masked_fill, softmax, masked_fill, without what autograd would keep and copy for them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores, allowed):
        hidden = ~allowed
        # A finite floor, not -inf: a row of padding would be 0/0. What it gives is zeroed after.
        filled = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        return filled.softmax(-1).masked_fill_(hidden, 0.0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, gradient):
        (weights,) = ctx.saved_tensors
        # torch's own softmax backward: masked entries have weight 0, hence gradient 0
        return torch._softmax_backward_data(gradient, weights, -1, weights.dtype), None


class Weighting(nn.Module):
    """How one block's attention weights are made.

    Attributes:
        name: the name by which ``attention=`` finds it.
        uses_scores: False where the scores are ignored (they may then be None).
        gaussian: True where it only makes sense between Gaussians (STOSA).
        settings: the constructor's arguments, for saving.
    """

    name: str
    uses_scores = True
    gaussian = False

    def __init__(self, **settings: Any):
        super().__init__()
        if settings and type(self).__init__ is Weighting.__init__:
            raise TypeError(f"{type(self).__name__} has no settings, got {', '.join(settings)}")
        self.settings = settings

    def build(self, layer: int, num_heads: int, max_len: int) -> Weighting:
        """Make what depends on the place: parameters, fixed random tables. Returns self."""
        return self

    def forward(self, scores: Tensor | None, allowed: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward(scores, allowed)")


class Softmax(Weighting):
    """A = softmax(S + C): learned, content-based weights (Vaswani et al. 2017, eq. 1)."""

    name = "softmax"

    def forward(self, scores, allowed):
        return masked_softmax(scores, allowed)


class Wasserstein(Softmax):
    """STOSA's weights (Fan et al. 2022, eq. 7): the softmax of its scores, negative distances."""

    name = "wasserstein"
    gaussian = True


class Uniform(Weighting):
    """A_ij = 1 / |allowed(i)|: the mean of everything that may be seen.

    Without scores it is of torch's default type: in a float64 model, exact to float32 only.
    """

    name = "uniform"
    uses_scores = False

    def forward(self, scores, allowed):
        count = allowed.sum(-1, keepdim=True).clamp(min=1)
        return allowed / count.to(_dtype(scores))


class Last(Weighting):
    """A = I: every position looks at itself alone."""

    name = "last"
    uses_scores = False

    def forward(self, scores, allowed):
        eye = torch.eye(allowed.shape[-1], dtype=torch.bool, device=allowed.device)
        return (allowed & eye).to(_dtype(scores))


class Shuffled(Weighting):
    """Softmax weights, each row permuted among its allowed keys.

    The permutation is fixed by (seed, layer, head, position from the end): the values of the
    weights stay, which item gets which does not.
    """

    name = "shuffled"

    def __init__(self, seed: int = 0):
        super().__init__(seed=seed)
        self.seed = seed

    def build(self, layer, num_heads, max_len):
        draws = _fixed_draws(self.seed, layer, num_heads, max_len)
        self.register_buffer("order", draws, persistent=False)
        return self

    def forward(self, scores, allowed):
        weights = masked_softmax(scores, allowed)
        order = _tail(self.order, allowed).expand_as(weights)
        # Both sorts put the allowed keys first: once in random order, once in their own.
        source = order.masked_fill(~allowed, math.inf).argsort(-1)
        target = (~allowed).to(torch.uint8).argsort(dim=-1, stable=True)
        return torch.zeros_like(weights).scatter(-1, target, weights.gather(-1, source))


class Random(Weighting):
    """Weights drawn once, uniformly from the simplex; fixed by (seed, layer, head, place)."""

    name = "random"
    uses_scores = False

    def __init__(self, seed: int = 0):
        super().__init__(seed=seed)
        self.seed = seed

    def build(self, layer, num_heads, max_len):
        draws = -_fixed_draws(self.seed, layer, num_heads, max_len).clamp(min=1e-30).log()
        self.register_buffer("draws", draws, persistent=False)  # exponential variates
        return self

    def forward(self, scores, allowed):
        mass = _tail(self.draws, allowed) * allowed
        return mass / mass.sum(-1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)


class Recency(Weighting):
    """A = softmax(-rate_h |i - j|): a decay with distance, one learned rate for each head."""

    name = "recency"
    uses_scores = False

    def build(self, layer, num_heads, max_len):
        self.rate = nn.Parameter(torch.zeros(num_heads, 1, 1))  # softplus(0) = 0.69
        return self

    def forward(self, scores, allowed):
        place = torch.arange(allowed.shape[-1], device=allowed.device)
        distance = (place[:, None] - place).clamp(min=0)
        return masked_softmax((-F.softplus(self.rate) * distance).expand(allowed.shape), allowed)


class Positional(Weighting):
    """A = softmax(M + C) with a learned (max_len x max_len) map M that never looks at items.

    M is shared by the heads, as the refinements' matrices are; it starts at zero (uniform).
    The "random Synthesizer" of Tay et al. 2020 (arXiv 2005.00743).
    """

    name = "positional"
    uses_scores = False

    def build(self, layer, num_heads, max_len):
        self.map = nn.Parameter(torch.zeros(max_len, max_len))
        return self

    def forward(self, scores, allowed):
        return masked_softmax(_tail(self.map, allowed).expand(allowed.shape), allowed)


class SoftmaxPositional(Positional):
    """A = softmax(S + M + C): softmax's scores and, beside them, a learned map M of positions.

    M starts at zero, and the model as plain softmax. This is the position bias of Raffel et al.
    2020 (arXiv 1910.10683) with a number for each pair of positions rather than each distance,
    and the control for :class:`RefinedAdditive`, which adds to S something that looks at items.
    """

    name = "softmax-positional"
    uses_scores = True

    def forward(self, scores, allowed):
        return masked_softmax(scores + _tail(self.map, allowed), allowed)


class Refined(Weighting):
    """Attention weight refinement: the rows of the attention map become tokens themselves.

    A reconstruction after Liu, Liu & Liu 2024 (arXiv 2410.21048), of which the idea and the
    names are public but not shapes, scale, masking or the softmax's place. Token i is row i of
    the scores with disallowed entries set to 0 (``reading="scores"``; the paper calls the score
    before the softmax the attention weight), or row i of the softmax weights
    (``reading="weights"``). The refined scores are masked again, always: without it the
    future reaches the past.

    Args:
        reading: "scores" or "weights".
        width: m, the width of the new space; the maximum length n by default.
        threshold: mask refined scores between tokens whose cosine is below it (the key of the
            query itself always stays); None for no threshold.

    Attributes:
        adds: True where S' is S plus something, False where it takes the place of S.

    Shapes: ``w_query``, ``w_key`` (n, m), ``w_value`` (n, n), shared by the heads. A batch of
    length L < n uses the last L rows (and columns), which equals padding it to n.
    """

    adds = False

    def __init__(
        self, reading: str = "scores", width: int | None = None, threshold: float | None = None
    ):
        if reading not in ("scores", "weights"):
            raise ValueError(f"reading must be 'scores' or 'weights', not {reading!r}")
        if width is not None and width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        super().__init__(reading=reading, width=width, threshold=threshold)
        self.reading, self.width, self.threshold = reading, width, threshold

    def build(self, layer, num_heads, max_len):
        width = self.width or max_len
        self.w_query = _xavier(max_len, width)
        self.w_key = _xavier(max_len, width)
        return self

    def tokens(self, scores: Tensor, allowed: Tensor) -> Tensor:
        """T (B, H, L, L): the rows of the attention map."""
        if self.reading == "weights":
            return masked_softmax(scores, allowed)
        return scores.masked_fill(~allowed, 0.0)

    def forward(self, scores, allowed):
        tokens = self.tokens(scores, allowed)
        refined = self.refine(tokens, scores, allowed)
        if self.threshold is not None:
            unit = F.normalize(tokens, dim=-1)
            eye = torch.eye(allowed.shape[-1], dtype=torch.bool, device=allowed.device)
            allowed = allowed & ((unit @ unit.mT >= self.threshold) | eye)
        return masked_softmax(refined, allowed)

    def refine(self, tokens: Tensor, scores: Tensor, allowed: Tensor) -> Tensor:
        """The refined scores S' from the tokens T. All (B, H, L, L)."""
        raise NotImplementedError

    def simple(self, tokens: Tensor) -> Tensor:
        """(T W_q)(T W_k)^T / sqrt(m)."""
        length = tokens.shape[-1]
        query, key = tokens @ self.w_query[-length:], tokens @ self.w_key[-length:]
        return query @ key.mT / math.sqrt(query.shape[-1])


class RefinedSimple(Refined):
    """S' = (T W_q)(T W_k)^T / sqrt(m)."""

    name = "awrsr-simple"

    def refine(self, tokens, scores, allowed):
        return self.simple(tokens)


class RefinedValue(Refined):
    """S' = softmax((T W_q)(T W_k)^T / sqrt(m) + C) (T W_v)."""

    name = "awrsr-value"

    def build(self, layer, num_heads, max_len):
        super().build(layer, num_heads, max_len)
        self.w_value = _xavier(max_len, max_len)
        return self

    def refine(self, tokens, scores, allowed):
        values = tokens @ _tail(self.w_value, tokens)
        return masked_softmax(self.simple(tokens), allowed) @ values


class RefinedAdditive(RefinedValue):
    """S' = S + the value-weighted refinement. With ``w_value = 0`` this is plain softmax."""

    name = "awrsr-additive"
    adds = True

    def refine(self, tokens, scores, allowed):
        return scores + super().refine(tokens, scores, allowed)


class RefinedStochastic(Refined):
    """S' = -W2^2 / sqrt(m) between the Gaussians of the tokens i and j (for STOSA).

    Token i is N(T_i W_mu, diag(ELU(T_i W_sigma) + 1)), with matrices of their own for queries
    and keys: shared ones would make every row nearest to itself. Variances are clamped at 1e-6.
    """

    name = "awrsr-stochastic"
    gaussian = True

    def build(self, layer, num_heads, max_len):
        super().build(layer, num_heads, max_len)  # the means
        self.w_query_scale = _xavier(*self.w_query.shape)
        self.w_key_scale = _xavier(*self.w_key.shape)
        return self

    def refine(self, tokens, scores, allowed):
        length = tokens.shape[-1]
        # The scores of long rows are large, and so are the points: their distances would drown.
        with full_precision(tokens.device):
            tokens = tokens.to(self.w_query.dtype)
            query = self._gaussian(tokens, self.w_query[-length:], self.w_query_scale[-length:])
            key = self._gaussian(tokens, self.w_key[-length:], self.w_key_scale[-length:])
        distances = squared_distances(query, key).to(tokens.dtype)
        return -distances / math.sqrt(self.w_query.shape[-1])

    @staticmethod
    def _gaussian(tokens, w_mean, w_scale):
        deviation = positive(tokens @ w_scale).sqrt()
        return torch.cat([tokens @ w_mean, deviation], -1)


def positive(x: Tensor) -> Tensor:
    """ELU(x) + 1: a variance from any number. The floor keeps the root's slope finite."""
    # Far below zero the 1 cancels: the sum is formed in float32 at least.
    return (F.elu(_widened(x)) + 1).clamp(min=1e-6).to(x.dtype)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """||x_i - y_j||^2 from one matrix product. x (..., I, D), y (..., J, D) -> (..., I, J).

    Between diagonal Gaussians written as (mean, standard deviation) this is the squared
    2-Wasserstein distance. It is a small difference of large numbers, so it comes in float32 at
    least, whatever ``torch.autocast`` says.
    """
    with full_precision(x.device):
        x, y = _widened(x), _widened(y)
        squares = x.square().sum(-1)[..., None] + y.square().sum(-1)[..., None, :]
        return (squares - 2 * x @ y.mT).clamp(min=0)


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


WEIGHTINGS: dict[str, type[Weighting]] = {
    kind.name: kind
    for kind in (
        Softmax,
        Uniform,
        RefinedSimple,
        RefinedValue,
        RefinedAdditive,
        Wasserstein,
        RefinedStochastic,
        Shuffled,
        Random,
        Last,
        Recency,
        Positional,
        SoftmaxPositional,
    )
}


def make_weighting(spec: str | dict[str, Any] | Weighting) -> Weighting:
    """A fresh weighting from a name, a name with settings (``{"name": .., ..}``) or an object.

    Raises:
        ValueError: no weighting has that name, or it has not these settings.
    """
    if isinstance(spec, Weighting):
        return copy.deepcopy(spec)
    if not isinstance(spec, str | Mapping):
        raise ValueError(
            f"a weighting is a name, a name with settings or an object, not {spec!r}; "
            f"there are: {', '.join(WEIGHTINGS)}"
        )
    settings = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = settings.pop("name", None)
    if name not in WEIGHTINGS:
        raise ValueError(f"no weighting is called {name!r}; there are: {', '.join(WEIGHTINGS)}")
    arguments = inspect.signature(WEIGHTINGS[name]).parameters.values()
    known = [each.name for each in arguments if each.kind is not each.VAR_KEYWORD]
    if unknown := [key for key in settings if key not in known]:
        raise ValueError(
            f"the weighting {name!r} has no setting {', '.join(unknown)}; "
            f"it has {', '.join(known) or 'none'}"
        )
    return WEIGHTINGS[name](**settings)


def describe_weighting(spec: str | dict[str, Any] | Weighting) -> str | dict[str, Any]:
    """The plain data from which :func:`make_weighting` makes the same weighting again."""
    if not isinstance(spec, Weighting):
        return copy.deepcopy(spec)
    name = getattr(spec, "name", None)
    if name is None or WEIGHTINGS.get(name, type(spec)) is not type(spec):
        name = type(spec).__name__  # of the reader's own; what it inherits would name another class
    settings = {key: value for key, value in spec.settings.items() if value is not None}
    return {"name": name, **settings} if settings else name


def _dtype(scores: Tensor | None) -> torch.dtype:
    return torch.get_default_dtype() if scores is None else scores.dtype


def _tail(table: Tensor, like: Tensor) -> Tensor:
    """The last rows and columns of a (.., n, n) table, as many as ``like`` has."""
    length = like.shape[-1]
    return table[..., -length:, -length:]


def _xavier(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(rows, columns)))


def _fixed_draws(seed: int, layer: int, num_heads: int, max_len: int) -> Tensor:
    """Uniform draws (H, n, n); each depends on (seed, layer, head, place from the end) alone."""
    draws = [
        [np.random.default_rng([seed, layer, head, row]).random(max_len) for row in range(max_len)]
        for head in range(num_heads)
    ]
    return torch.from_numpy(np.asarray(draws, dtype=np.float32)).flip(-1, -2)
