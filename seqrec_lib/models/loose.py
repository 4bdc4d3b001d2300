"""The looser uniform attention: not only the scores go.

The strict intervention (``attention="uniform"``) replaces the scores and nothing else. Public
code for uniform attention often removes more at once; comparing the two tells how much of a
difference is the intervention, and how much the rest.
"""

from __future__ import annotations

from torch import Tensor, nn

from .attention import Attention
from .weighting import Uniform

__all__ = ["LooseUniformAttention"]


class LooseUniformAttention(Attention):
    """The mean of what may be seen, between two matrices: y = mean(x W_V) W_O.

    No query and key projections, no heads, no biases, no dropout on the weights (the form of
    the public code of Kozaki et al., JSAI 2026). It takes its initial W_V and W_O from the
    attention it replaces, so that both forms start alike: uniform weights do not differ between
    heads, and what remains between the two are the biases.

    Args:
        strict: the attention to replace.
    """

    name = "uniform-loose"  #: what ``attention=`` calls it

    def __init__(self, strict: Attention):
        dim = strict.value.in_features
        super().__init__(dim, num_heads=1, dropout=0.0, output=strict.output is not None)
        self.query = self.key = None
        self.weighting = Uniform()
        for mine, theirs in ((self.value, strict.value), (self.output, strict.output)):
            if mine is not None:
                mine.weight, mine.bias = nn.Parameter(theirs.weight.detach().clone()), None

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        raise ValueError(
            f"{self.weighting.name!r} needs scores, and the looser uniform attention has neither "
            "queries nor keys; use a model with attention='uniform', the strict form"
        )
