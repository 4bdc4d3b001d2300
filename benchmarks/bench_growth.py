"""How an epoch grows with length, catalogue and width.

    python benchmarks/bench_growth.py [--repeats 5]

SASRec with two blocks and cross-entropy over all items on generated logs of 512 users, one size
changed at a time; beside it the floor, whose growth is that of the arithmetic.
"""

from __future__ import annotations

import numpy as np
from _common import (
    arguments,
    floor_operations,
    floor_seconds,
    matrix_rates,
    positions,
    report,
)
from bench_training import epoch_seconds

import seqrec_lib as sr

BASE = {"length": 50, "items": 4_096, "dim": 64}
GROWTH = {
    "length": (25, 50, 100, 200),
    "items": (1_024, 4_096, 16_384, 65_536),
    "dim": (16, 32, 64, 128, 256),
}


def generated(length: int, items: int, users: int) -> sr.Split:
    """Random sequences, each ``length`` positions long in training."""
    draws = np.random.default_rng(0).integers(1, items + 1, (users, length + 3))
    return sr.leave_one_out(sr.Interactions(list(draws), num_items=items, name="generated"))


def main() -> None:
    options = arguments(__doc__, repeats=5)
    rates, counts, rows = [matrix_rates()], [], []
    for what, sizes in GROWTH.items():
        for size in sizes[:2] if options.tiny else sizes:
            of = BASE | {what: size}
            split = generated(of["length"], of["items"], 64 if options.tiny else 512)
            seconds = epoch_seconds(split, of["length"], of["dim"], "float32", options.repeats)
            operations = floor_operations(positions(split, of["length"]), of["items"], of["dim"], 2)
            counts.append(operations)
            rows.append({"grows": what, **of, "gflop": sum(operations) / 1e9, "seconds": seconds})
    rates.append(matrix_rates())
    for row, operations in zip(rows, counts, strict=True):
        row["floor"] = floor_seconds(operations, rates)
        row["ratio"] = row["seconds"] / row["floor"]
    report("growth", options, rows, users=512, precision="float32")


if __name__ == "__main__":
    main()
