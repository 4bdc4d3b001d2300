"""The norm decomposition against one that builds every term, and statistics of all users.

    python benchmarks/bench_decompose.py [--users 32] [--heads 1 2]

ml-1m's test users at length 200, where ``$SEQREC_DATA`` or the cache holds them, else made
histories of the same lengths. Each case runs in a process of its own, on an idle machine, three
times; the fastest counts. Memory is what the process held at most beyond what it held before the
measured call. The model is untrained: what the weights are makes no difference to the time.

- "terms": the tensor of all terms, (batch, heads, query, key, width), as the equations have it;
- "decompose": the same norms and mixing ratios through the Gram form;
- "ratios": the mixing ratios alone, which is what a data set's statistics need;
- "statistics": attention_statistics over all users, the model's own pass included.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from _common import arguments, report

import seqrec_lib as sr
from seqrec_lib.data.batching import pad
from seqrec_lib.data.interactions import Ragged

LENGTH, WIDTH, USERS = 200, 64, 6040
CASES = ("terms", "decompose", "ratios", "statistics")


def read_histories() -> tuple[str, Ragged, int]:
    """(where from, histories, number of items)."""
    try:
        split = sr.leave_one_out(sr.load_dataset("ml-1m"))
        return "ml-1m", split.test.histories, split.num_items
    except OSError:  # neither at hand nor to be had: about as long, median 96
        rng = np.random.default_rng(0)
        lengths = np.clip(rng.lognormal(np.log(96), 0.97, USERS), 19, 2300).astype(int)
        rows = [rng.integers(1, 3417, length) for length in lengths]
        return "made", Ragged.from_lists(rows), 3416


@torch.no_grad()
def terms(layer: sr.LayerTrace) -> None:
    """AttnResLN-N from the tensor of all terms, as published code computes it."""
    values, norm = layer.values, layer.reading_norm
    matrices = layer.projection.weight.T.unflatten(0, values.shape[1::2])  # (H, D/H, D)
    vectors = torch.einsum("bhjd,hde->bhje", values, matrices)
    found = torch.einsum("bhij,bhje->bhije", layer.weights, vectors).sum(1)  # (B, L, L, D)
    found.diagonal(dim1=1, dim2=2).add_(layer.residual.mT)
    sigma = (layer.total.var(-1, correction=0) + norm.eps).sqrt()[:, :, None, None]
    found = norm.weight * (found - found.mean(-1, keepdim=True)) / sigma
    own = found.diagonal(dim1=1, dim2=2).mT
    mixing = (found.sum(2) - own).norm(dim=-1)
    found.norm(dim=-1), mixing / (mixing + own.norm(dim=-1))


def decompose(layer: sr.LayerTrace) -> None:
    part = sr.decompose(layer).attn_res_ln
    part.norms, part.mixing_ratio  # noqa: B018


def ratios(layer: sr.LayerTrace) -> None:
    sr.decompose(layer).attn_res_ln.mixing_ratio  # noqa: B018


def measure(case: str, users: int, num_heads: int, repeats: int, tiny: bool) -> dict:
    """Seconds, and peak MiB beyond what was there before."""
    source, histories, num_items = read_histories()
    if tiny:
        histories = histories.select(np.arange(300))
    model = sr.SASRec(num_items, max_len=LENGTH, dim=WIDTH, num_heads=num_heads, seed=0)
    if case == "statistics":
        users = len(histories)
        work: Callable[[], object] = lambda: sr.attention_statistics(model, histories)  # noqa: E731
        repeats = 1
    else:
        full = np.flatnonzero(histories.lengths >= LENGTH)[:users]
        users = len(full)
        layer = sr.capture(model, pad(histories.select(full), LENGTH))[0]
        work = lambda: globals()[case](layer)  # noqa: E731
    seconds = []
    with PeakMemory() as memory:
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
    return {"case": case, "data": source, "users": users, "heads": num_heads,
            "seconds": min(seconds), "peak_mib": memory.mib}  # fmt: skip


class PeakMemory:
    """The process's largest resident size inside the ``with``, beyond that at its start.

    Sampled every millisecond: ``ru_maxrss`` would also count what came before.
    """

    def __enter__(self):
        self._start, self._most, self._done = resident(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self._most = max(self._most, resident())

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        self.mib = (self._most - self._start) / 2**20


def resident() -> int:
    """Bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main() -> None:
    options = arguments(__doc__, users=32, heads=[1, 2])
    users = 4 if options.tiny else options.users
    spawn, found = multiprocessing.get_context("spawn"), []
    for heads in options.heads:
        for case in CASES:
            with ProcessPoolExecutor(1, mp_context=spawn) as fresh:
                row = fresh.submit(
                    measure, case, users, heads, options.repeats, options.tiny
                ).result()
            if case == "terms":
                reference = row
            elif case != "statistics":
                row["times_faster"] = reference["seconds"] / row["seconds"]
                row["times_smaller"] = reference["peak_mib"] / max(row["peak_mib"], 1)
            found.append(row)
    report("decompose", options, found, length=LENGTH, width=WIDTH)


if __name__ == "__main__":
    main()
