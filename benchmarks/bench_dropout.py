"""The library's dropout against torch's, forward and backward.

    python benchmarks/bench_dropout.py [--repeats 20]

The shapes are those of one SASRec step: a sublayer's output, and the attention weights.
"""

from __future__ import annotations

import torch
from _common import arguments, fastest, report
from torch import nn

from seqrec_lib.models.dropout import Dropout

SHAPES = {"sublayer output": (128, 200, 64), "attention weights": (128, 1, 200, 200)}


def main() -> None:
    options = arguments(__doc__, repeats=20)
    rows = []
    for what, shape in SHAPES.items():
        x = torch.randn(shape if not options.tiny else (4, *shape[1:]), requires_grad=True)
        above = torch.randn_like(x)
        row = {"what": what, "shape": list(x.shape)}
        for name, dropout in (("library", Dropout(0.2)), ("torch", nn.Dropout(0.2))):
            row[f"{name}_ms"] = 1e3 * fastest(
                lambda dropout=dropout, x=x, above=above: dropout(x).backward(above),
                options.repeats,
            )
        rows.append(row | {"ratio": row["torch_ms"] / row["library_ms"]})
    report("dropout", options, rows)


if __name__ == "__main__":
    main()
