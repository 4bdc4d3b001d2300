"""Training: losses, the loop, its history, and where a run stands."""

from .fitting import TrainingDiverged, fit
from .history import History
from .losses import LOSSES, chunked_cross_entropy
from .seeds import fit_seeds

__all__ = ["LOSSES", "History", "TrainingDiverged", "chunked_cross_entropy", "fit", "fit_seeds"]
