"""Each way of making attention weights: parameters, operations, time and memory of a step.

    python benchmarks/bench_weightings.py [--model STOSA] [--lengths 50 100 200]
        [--items 1000 10000 100000] [--batch-size 128] [--dim 64] [--device cuda]

Run it on an idle machine. The first table varies the length at the smallest catalogue, the
second the catalogue at the shortest length; what the columns mean, ``help(sr.costs)`` says.
"""

from __future__ import annotations

import argparse

import torch

import seqrec_lib as sr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="SASRec", choices=["SASRec", "STOSA"])
    parser.add_argument("--attention", nargs="+", help="default: all that suit the model")
    parser.add_argument("--lengths", nargs="+", type=int, default=[50, 100, 200])
    parser.add_argument("--items", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    options = {key: getattr(arguments, key)
               for key in ("model", "batch_size", "dim", "seconds", "device")}  # fmt: skip
    lengths, items = sorted(arguments.lengths), sorted(arguments.items)
    device = sr.device() if arguments.device == "auto" else torch.device(arguments.device)
    print(
        f"{arguments.model}, width {arguments.dim}, batches of {arguments.batch_size} on "
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for n, catalogue in ((lengths, items[:1]), (lengths[:1], items)):
        table = sr.costs(arguments.attention, n, catalogue, **options)
        print(f"\n{table.drop(columns='model').round(2).to_string(index=False)}")


if __name__ == "__main__":
    main()
