"""The study: a grid of runs, their records, and what the records show."""

from .averaging import Average, average
from .comparison import (
    Change,
    chosen,
    detectable,
    epochs_to,
    gains,
    holm,
    largest_rise,
    paired,
    published_gains,
    relative_difference,
)
from .grid import Run, load_grid
from .measuring import run_one
from .profiling import profiles, write_profile
from .records import DamagedRecord, Store, results, results_dir
from .runner import Report, run_grid
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
    swapped,
)

__all__ = [
    "Average",
    "Change",
    "DamagedRecord",
    "Report",
    "Run",
    "Store",
    "average",
    "benchmark",
    "by_length",
    "chosen",
    "detectable",
    "effects",
    "epochs_to",
    "gains",
    "histories",
    "holm",
    "largest_rise",
    "load_grid",
    "missing",
    "paired",
    "profiles",
    "published",
    "published_gains",
    "published_regimes",
    "regimes",
    "relative_difference",
    "results",
    "results_dir",
    "run_grid",
    "run_one",
    "summarize",
    "swapped",
    "write_profile",
]
