"""Attention in sequential recommendation: build it, refine it, switch it off, take it apart.

The names below are the library; everything they need comes one way:
data -> models -> training, evaluation -> analysis -> study.
"""

from . import plotting
from .analysis import (
    Difference,
    EffectSize,
    Equivalence,
    equivalence,
    hedges_g,
    paired_difference,
)
from .book import claim, glue, say
from .data import (
    DATASETS,
    DatasetInfo,
    Interactions,
    Part,
    Ragged,
    Split,
    Truth,
    global_temporal,
    leave_one_out,
    load_dataset,
    read_interactions,
    worlds,
)
from .device import device
from .evaluation import Interval, Metrics, bootstrap_ci, evaluate
from .models import (
    STOSA,
    WEIGHTINGS,
    ItemKNN,
    MarkovChain,
    Popularity,
    SASRec,
    Weighting,
    costs,
    load,
    make_weighting,
    save,
)
from .training import LOSSES, History, TrainingDiverged, fit

__version__ = "0.1.0"

__all__ = [
    "DATASETS",
    "LOSSES",
    "STOSA",
    "WEIGHTINGS",
    "DatasetInfo",
    "Difference",
    "EffectSize",
    "Equivalence",
    "History",
    "Interactions",
    "Interval",
    "ItemKNN",
    "MarkovChain",
    "Metrics",
    "Part",
    "Popularity",
    "Ragged",
    "SASRec",
    "Split",
    "TrainingDiverged",
    "Truth",
    "Weighting",
    "bootstrap_ci",
    "claim",
    "costs",
    "device",
    "equivalence",
    "evaluate",
    "fit",
    "global_temporal",
    "glue",
    "hedges_g",
    "leave_one_out",
    "load",
    "load_dataset",
    "make_weighting",
    "paired_difference",
    "plotting",
    "read_interactions",
    "save",
    "say",
    "worlds",
]
