"""What every benchmark needs: the machine in words and in numbers, a clock, a place for results."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import seqrec_lib as sr
from seqrec_lib.device import has_bfloat16
from seqrec_lib.files import atomic_path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "benchmarks"


def arguments(about: str, repeats: int = 3, **defaults: Any) -> argparse.Namespace:
    """The options all benchmarks share, and ``defaults`` of its own."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a rehearsal; writes no results")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=repeats, help="the fastest counts")
    for name, default in defaults.items():
        many = {"nargs": "*"} if isinstance(default, list) else {}
        kind = type(default[0] if many else default)
        parser.add_argument(f"--{name}", type=kind, default=default, **many)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def fastest(work: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest run: what else the machine does can only add to it."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def matrix_rate(dtype: torch.dtype = torch.float32, seconds: float = 3.0) -> float:
    """Operations a second (a multiplication and an addition are two) of the fastest product."""
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for size in (512, 1024, 2048):
            a, b = torch.ones(2, size, size, dtype=dtype)
            best = max(best, 2 * size**3 / fastest(lambda a=a, b=b: a @ b, 3))
    return best


def precisions() -> list[str]:
    """Those that ``fit`` tells apart on this processor."""
    return ["float32", *(["bfloat16"] if has_bfloat16(torch.device("cpu")) else [])]


def matrix_rates() -> dict[str, float]:
    """Those of each precision, by name."""
    return {name: matrix_rate(getattr(torch, name)) for name in precisions()}


def floor_operations(
    lengths: np.ndarray, num_items: int, dim: int, blocks: int
) -> tuple[float, float]:
    """Operations of one epoch that no program can do without: the blocks' and the loss's.

    Only products, only real positions, only allowed pairs: per position six D x D maps a block
    (query, key, value, output, two of the feed-forward part) and the scores of all items; per
    allowed pair two vectors of length D a block (score and sum). Forward and backward pass: a
    gradient costs twice the forward pass.

    Args:
        lengths: of the training sequences as the model reads them (their last item is a target
            alone).
    """
    n = lengths.astype(float)
    per_block = n.sum() * 6 * dim**2 + (n * (n + 1) / 2).sum() * 2 * dim
    return 3 * 2 * blocks * per_block, 3 * 2 * n.sum() * num_items * dim


def floor_seconds(
    operations: tuple[float, float], rates: Sequence[dict[str, float]], precision: str = "float32"
) -> float:
    """The operations over the fastest rates: ``precision`` is that of the loss alone, as in fit."""
    fastest_of = {name: max(rate[name] for rate in rates) for name in ("float32", precision)}
    blocks, loss = operations
    return blocks / fastest_of["float32"] + loss / fastest_of[precision]


def positions(split: sr.Split, max_len: int) -> np.ndarray:
    """How many positions each user's training sequence has, where it has any."""
    lengths = split.train.lengths
    return np.minimum(lengths[lengths >= 2] - 1, max_len)


def in_fresh_process(work: Callable, *args: Any) -> tuple[Any, float]:
    """(what ``work(*args)`` returns, peak MiB of the process it had to itself)."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(_measured, torch.get_num_threads(), work, args).result()


def _measured(threads: int, work: Callable, args: tuple) -> tuple[Any, float]:
    torch.set_num_threads(threads)
    return work(*args), peak_mib()


def peak_mib() -> float:
    """Peak memory of this process, Python and torch included."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def machine() -> dict[str, Any]:
    """What was measured on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "library": sr.__version__,
        "load_average": round(os.getloadavg()[0], 2),
        "measured_at": datetime.now(UTC).isoformat(timespec="minutes"),
        **{f"gflops_{name}": round(rate / 1e9, 1) for name, rate in matrix_rates().items()},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def report(name: str, options: argparse.Namespace, rows: list[dict], **more: Any) -> None:
    """Print the rows as a table, and keep them in ``results/benchmarks/<name>.json``."""
    import pandas as pd

    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda x: f"{x:,.4g}"))
    if options.tiny:
        return
    record = {"machine": machine(), "repeats": options.repeats, **more, "rows": rows}
    path = RESULTS / f"{name}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {path.relative_to(ROOT)}")
