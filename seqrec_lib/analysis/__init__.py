"""Looking inside: what a block computed, what moved it, what an intervention does."""

from .adapters import capture_torch
from .attribution import attribution_agreement, item_contributions, removal_effects, rollout
from .capture import LayerTrace, Trace, capture
from .costs import costs
from .decompose import Contributions, Parts, WeightShares, decompose
from .effects import Difference, EffectSize, Equivalence, equivalence, hedges_g, paired_difference
from .intervene import RemoveDistance, RemovePosition, ScaleResidual, SwapPositions, intervene
from .profile import gini, profile
from .refinement import RefinementByPosition, refinement_by_position
from .statistics import attention_statistics, normalized_entropy

__all__ = [
    "Contributions",
    "Difference",
    "EffectSize",
    "Equivalence",
    "LayerTrace",
    "Parts",
    "RefinementByPosition",
    "RemoveDistance",
    "RemovePosition",
    "ScaleResidual",
    "SwapPositions",
    "Trace",
    "WeightShares",
    "attention_statistics",
    "attribution_agreement",
    "capture",
    "capture_torch",
    "costs",
    "decompose",
    "equivalence",
    "gini",
    "hedges_g",
    "intervene",
    "item_contributions",
    "normalized_entropy",
    "paired_difference",
    "profile",
    "refinement_by_position",
    "removal_effects",
    "rollout",
]
