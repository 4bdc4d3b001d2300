"""Logs of interactions: reading, loading, filtering and splitting them."""

from . import worlds
from .catalogue import DATASETS, DatasetInfo
from .interactions import Interactions, Ragged, Truth
from .loading import load_dataset
from .reading import read_interactions
from .splits import Part, Split, global_temporal, leave_one_out

__all__ = [
    "DATASETS",
    "DatasetInfo",
    "Interactions",
    "Part",
    "Ragged",
    "Split",
    "Truth",
    "global_temporal",
    "leave_one_out",
    "load_dataset",
    "read_interactions",
    "worlds",
]
