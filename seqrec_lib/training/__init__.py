"""Training: losses, the loop, its history, and where a run stands."""

from .fitting import fit
from .history import History
from .loop import TrainingDiverged
from .losses import LOSSES, chunked_cross_entropy
from .seeds import fit_seeds

__all__ = ["LOSSES", "History", "TrainingDiverged", "chunked_cross_entropy", "fit", "fit_seeds"]
