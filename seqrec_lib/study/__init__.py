"""The study: a grid of runs, their records, and what the records show."""

from .grid import Run, load_grid
from .records import DamagedRecord, Store, results
from .runner import Report, run_grid, run_one

__all__ = [
    "DamagedRecord",
    "Report",
    "Run",
    "Store",
    "load_grid",
    "results",
    "run_grid",
    "run_one",
]
