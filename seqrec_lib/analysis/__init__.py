"""Looking inside: what a block computed, what moved it, what an intervention does."""

from .effects import Difference, EffectSize, Equivalence, equivalence, hedges_g, paired_difference

__all__ = [
    "Difference",
    "EffectSize",
    "Equivalence",
    "equivalence",
    "hedges_g",
    "paired_difference",
]
