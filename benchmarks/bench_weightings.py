"""Each way of making attention weights: parameters, operations, time and memory of a step.

    python benchmarks/bench_weightings.py [--model STOSA] [--lengths 50 100 200]
        [--items 1000 10000 100000] [--batch_size 128] [--dim 64] [--device cuda]

Run it on an idle machine. The first rows vary the length at the smallest catalogue, the others
the catalogue at the shortest length; what the columns mean, ``help(sr.costs)`` says.
"""

from __future__ import annotations

from _common import arguments, report

import seqrec_lib as sr


def main() -> None:
    options = arguments(__doc__, model="SASRec", lengths=[50, 100, 200],
                        items=[1_000, 10_000, 100_000], batch_size=128, dim=64, seconds=2.0,
                        device="auto")  # fmt: skip
    lengths, items = sorted(options.lengths), sorted(options.items)
    sizes = {key: getattr(options, key) for key in ("model", "batch_size", "dim", "device")}
    seconds, rows = (0 if options.tiny else options.seconds), []
    if options.tiny:
        lengths, items = [10, 20], [100, 200]
    for n, catalogue in ((lengths, items[:1]), (lengths[:1], items[1:])):
        table = sr.costs(None, n, catalogue, seconds=seconds, **sizes)
        rows += table.to_dict("records")
    report(f"weightings-{options.model.lower()}", options, rows, **sizes)


if __name__ == "__main__":
    main()
