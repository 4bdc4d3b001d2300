"""Five seeds trained as one batched model, against one after the other.

    python benchmarks/bench_seeds.py [--datasets world-series beauty ml-1m] [--precision bfloat16]

On the device that there is (``SEQREC_DEVICE``, else CUDA, else the CPU), side by side: an epoch of
each seed by itself and an epoch of all at once take turns. SASRec of two blocks and one head,
cross-entropy over all items, batches of 128 users; whole epochs, without validation.
"""

from __future__ import annotations

import functools

import torch
from _common import arguments, report
from bench_training import LENGTH, load, without_validation

import seqrec_lib as sr

SEEDS = range(5)


@functools.cache
def data(dataset: str, users: int | None) -> tuple[sr.Split, dict[str, int]]:
    """The split, and the sizes of the model that suit it."""
    if dataset == "world-series":
        log, sizes = sr.worlds.series(num_users=users or 2_500), {"max_len": 32, "dim": 32}
    else:
        log, sizes = load(dataset, users), {"max_len": LENGTH[dataset], "dim": 64}
    return without_validation(sr.leave_one_out(log)), sizes


def epoch_seconds(dataset: str, users: int | None, precision: str, seeds: list[int]) -> float:
    """One epoch of all ``seeds`` at once; of one, by ``fit``."""
    split, sizes = data(dataset, users)
    models = [sr.SASRec(split.num_items, **sizes, seed=seed) for seed in seeds]
    options = {"epochs": 2, "precision": precision, "progress": False}  # the first warms up
    if len(seeds) == 1:
        return min(sr.fit(*models, split, **options).column("seconds"))
    histories = sr.fit_seeds(models, split, seeds=seeds, **options)
    return min(map(sum, zip(*(history.column("seconds") for history in histories), strict=True)))


def main() -> None:
    options = arguments(__doc__, 2, datasets=["world-series", *LENGTH], precision="bfloat16")
    device, rows = sr.device(), []
    for dataset in options.datasets:
        measured = functools.partial(
            epoch_seconds, dataset, 200 if options.tiny else None, options.precision
        )
        turns = [
            (sum(measured([seed]) for seed in SEEDS), measured([*SEEDS]))
            for _ in range(options.repeats)
        ]
        alone, together = map(min, zip(*turns, strict=True))
        rows.append({"dataset": dataset, "one_by_one": alone, "at_once": together,
                     "gain": alone / together})  # fmt: skip
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    report(f"seeds-{device.type}", options, rows, device=name, seeds=len(SEEDS),
           precision=options.precision)  # fmt: skip


if __name__ == "__main__":
    main()
