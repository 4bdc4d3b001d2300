"""What the drivers of the peers share: the job, a clock for steps, the answer.

A driver runs with its peer's own Python and sees nothing of the library.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import torch


class Clock:
    """Seconds between ticks, until there are ``steps`` of them or it took too long."""

    def __init__(self, steps: int, seconds: float):
        self.steps, self.limit = steps, seconds
        self.seconds: list[float] = []
        self.last = self.start = time.perf_counter()

    def tick(self) -> bool:
        """Note a step; is it enough?"""
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
        return len(self.seconds) >= self.steps or now - self.start > self.limit


def job() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("log", help="tab-separated: user, item, order")
    for name in ("length", "dim", "batch", "steps", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--folder", required=True, help="for scratch files")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def answer(clock: Clock, steps_per_epoch: int, targets: int, version: str) -> None:
    """One line of JSON, the last of the output. ``targets``: predicted items of one epoch."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    found = {"version": version, "seconds": clock.seconds, "peak_mib": peak}
    print(json.dumps(found | {"steps_per_epoch": steps_per_epoch, "targets": targets}), flush=True)
