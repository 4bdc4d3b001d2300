"""Seconds per epoch against the floor, peak memory, and full ranking.

    python benchmarks/bench_training.py [--datasets beauty ml-1m] [--repeats 3]

SASRec of width 64, two blocks, one head, cross-entropy over all items, batches of 128 users, on
the length that is usual for the data set. The floor is the count of the multiplications with
real items over the machine's measured rate, that of bfloat16 for the loss where it is computed so.
Whole epochs are timed, without validation,
which has a row of its own (full ranking of the test users).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from _common import (
    arguments,
    fastest,
    floor_operations,
    floor_seconds,
    in_fresh_process,
    matrix_rates,
    positions,
    precisions,
    report,
)

import seqrec_lib as sr
from seqrec_lib.training.batches import Batches

LENGTH = {"beauty": 50, "ml-1m": 200}


def without_validation(split: sr.Split) -> sr.Split:
    none = sr.Part(np.empty(0, int), sr.Ragged.from_lists([]), np.empty(0, int))
    return dataclasses.replace(split, validation=none)


def epoch_seconds(split: sr.Split, length: int, dim: int, precision: str, epochs: int) -> float:
    """The fastest of ``epochs`` epochs."""
    model = sr.SASRec(split.num_items, max_len=length, dim=dim, dropout=0.2, seed=0)
    history = sr.fit(model, without_validation(split), epochs=epochs, precision=precision,
                     device="cpu", progress=False)  # fmt: skip
    return min(history.column("seconds"))


def train(dataset: str, precision: str, epochs: int, users: int | None) -> float:
    split = sr.leave_one_out(load(dataset, users))
    return epoch_seconds(split, LENGTH[dataset], 64, precision, epochs)


def rank(dataset: str, repeats: int, users: int | None) -> float:
    """Users per second, each ranked among all items."""
    split = sr.leave_one_out(load(dataset, users))
    model = sr.SASRec(split.num_items, max_len=LENGTH[dataset], seed=0)
    return len(split.test) / fastest(lambda: sr.evaluate(model, split), repeats)


def padding(split: sr.Split, length: int) -> dict[str, float]:
    """Shares of padded positions: in the library's batches, and padded to ``length`` throughout."""
    batches = Batches(split.train, length, 128, torch.device("cpu"))
    slots = sum(batch.items.numel() for batch in batches.epoch(np.random.default_rng(0)))
    real = positions(split, length)
    return {"library": 1 - real.sum() / slots, "one length": 1 - real.mean() / length}


def load(dataset: str, users: int | None = None) -> sr.Interactions:
    """The log, or its first ``users``."""
    log = sr.load_dataset(dataset)
    return log if users is None else log.select_users(np.arange(users))


def main() -> None:
    options = arguments(__doc__, datasets=list(LENGTH))
    for dataset in options.datasets:
        users, length = (300 if options.tiny else None), LENGTH[dataset]
        split = sr.leave_one_out(load(dataset, users))
        operations = floor_operations(positions(split, length), split.num_items, 64, 2)
        rates, rows = [matrix_rates()], []
        for precision in precisions():
            seconds, mib = in_fresh_process(train, dataset, precision, options.repeats, users)
            rows.append({"what": "epoch", "precision": precision, "seconds": seconds,
                         "peak_mib": mib})  # fmt: skip
            rates.append(matrix_rates())
        for row in rows:
            row["floor"] = floor_seconds(operations, rates, row["precision"])
            row["ratio"] = row["seconds"] / row["floor"]
        rate, mib = in_fresh_process(rank, dataset, options.repeats, users)
        rows.append({"what": "full ranking", "seconds": len(split.test) / rate,
                     "users_per_second": rate, "peak_mib": mib})  # fmt: skip
        report(f"training-{dataset}", options, rows, dataset=dataset, length=length, dim=64,
               items=split.num_items, gflop=sum(operations) / 1e9,
               loss_share=operations[1] / sum(operations),
               padding=padding(split, length))  # fmt: skip


if __name__ == "__main__":
    main()
