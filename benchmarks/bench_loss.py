"""Cross-entropy over all items: gradient formed chunk by chunk against torch's own.

    python benchmarks/bench_loss.py [--repeats 5]

For 8,192 positions of width 64 and catalogues of several sizes: seconds of forward and backward
pass, peak memory (each case in a process of its own; Python and torch included), and how far
bfloat16 products take the gradient from float32's, at scores that spread as a trained model's do.
Then by the positions of a chunk, of which the library chooses as many as suit the catalogue.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from _common import arguments, fastest, in_fresh_process, report

from seqrec_lib.training import chunked_cross_entropy

CATALOGUES = {"1,000": 1_000, "ml-1m": 3_416, "beauty": 12_101}
CHUNKS = (64, 128, 256, 512, 1024)
CASES = ("torch", "chunked", "chunked bfloat16")


def loss(case: str, queries, table, targets, chunk: int | None = None):
    if case == "torch":
        return F.cross_entropy(queries @ table.T, targets)
    mixed = torch.autocast("cpu", torch.bfloat16) if "bfloat16" in case else None
    with mixed or contextlib.nullcontext():
        return chunked_cross_entropy(queries, table, targets, chunk=chunk)


def inputs(positions: int, items: int, dim: int = 64):
    draw = torch.Generator().manual_seed(0)
    queries = torch.randn(positions, dim, generator=draw, requires_grad=True)
    table = (torch.randn(items, dim, generator=draw) * 3 / 8).requires_grad_()
    return queries, table, torch.randint(items, (positions,), generator=draw)


def measure(case: str, positions: int, items: int, repeats: int, chunk: int | None) -> float:
    """Seconds of one forward and backward pass."""
    data = inputs(positions, items)
    return fastest(lambda: loss(case, *data, chunk=chunk).backward(), repeats)


def gradient_error(positions: int, items: int) -> float:
    """|bfloat16's gradient of the table - float32's| / |float32's|."""
    queries, table, targets = inputs(positions, items)
    exact, rough = (
        torch.autograd.grad(loss(case, queries, table, targets), table)[0] for case in CASES[1:]
    )
    return float((rough - exact).norm() / exact.norm())


def main() -> None:
    options = arguments(__doc__, repeats=5, positions=8192)
    positions = 512 if options.tiny else options.positions
    runs = [(name, case, None) for name in CATALOGUES for case in CASES]
    runs += [(name, CASES[1], chunk) for name in ("ml-1m", "beauty") for chunk in CHUNKS]
    rows = []
    for name, case, chunk in runs:
        items = CATALOGUES[name]
        seconds, mib = in_fresh_process(measure, case, positions, items, options.repeats, chunk)
        row = {"catalogue": name, "items": items, "case": case, "chunk": chunk or "the library's"}
        row |= {"seconds": seconds, "peak_mib": mib}
        if "bfloat16" in case:
            row["gradient_error"] = gradient_error(positions, items)
        rows.append(row)
    report("loss", options, rows, positions=positions, dim=64)


if __name__ == "__main__":
    main()
