"""Ranks, metrics and intervals."""

from .intervals import Interval, bootstrap_ci
from .metrics import Metrics
from .ranking import evaluate

__all__ = ["Interval", "Metrics", "bootstrap_ci", "evaluate"]
