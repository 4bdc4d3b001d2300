"""The study: a grid of runs, their records, and what the records show."""

from .grid import Run, load_grid
from .records import DamagedRecord, Store, results
from .runner import Report, run_grid, run_one
from .tables import (
    benchmark,
    by_length,
    effects,
    histories,
    missing,
    published,
    published_regimes,
    regimes,
    summarize,
)

__all__ = [
    "DamagedRecord",
    "Report",
    "Run",
    "Store",
    "benchmark",
    "by_length",
    "effects",
    "histories",
    "load_grid",
    "missing",
    "published",
    "published_regimes",
    "regimes",
    "results",
    "run_grid",
    "run_one",
    "summarize",
]
