"""Full-ranking evaluation: users per second and peak memory.

    python benchmarks/bench_ranking.py [beauty ml-1m ...]

Each case runs in a process of its own, on an idle machine, three times; the fastest counts.
"products" is only the multiplication of queries with items, which no full ranking can do
without; "sort" is the obvious way, which sorts every user's scores. The SASRec is untrained:
what the scores are makes no difference to the time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

import seqrec_lib as sr
from seqrec_lib.data.batching import pad

MAX_LEN = {"ml-1m": 200, "ml-100k": 200}
CASES = ("products", "SASRec", "SASRec, sort", "Popularity", "MarkovChain", "ItemKNN")


@torch.inference_mode()
def products(model, part) -> None:
    table = model.readout()[0].T
    for start in range(0, len(part), 128):
        torch.zeros(min(128, len(part) - start), len(table)) @ table


@torch.inference_mode()
def rank_by_sorting(model, part) -> None:
    model.eval()
    for start in range(0, len(part), 256):
        rows = np.arange(start, min(start + 256, len(part)))
        items = pad(part.histories.select(rows), model.max_len, length=model.max_len)
        order = model.score(model.encode(items)[:, -1]).argsort(1, descending=True)
        (order == torch.from_numpy(part.targets[rows, None])).nonzero()


def measure(dataset: str, case: str) -> tuple[int, float, float]:
    """(users, seconds, peak MiB of the process, Python and torch included)."""
    split = sr.leave_one_out(sr.load_dataset(dataset))
    if case in ("Popularity", "MarkovChain", "ItemKNN"):
        model = getattr(sr, case)().fit(split)
    else:
        model = sr.SASRec(split.num_items, max_len=MAX_LEN.get(dataset, 50))
    work = {"products": products, "SASRec, sort": rank_by_sorting}.get(
        case, lambda model, part: sr.evaluate(model, split)
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work(model, split.test)
        seconds.append(time.perf_counter() - start)
    return len(split.test), min(seconds), peak_mib()


def peak_mib() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", nargs="*", default=["beauty", "ml-1m"])
    spawn = multiprocessing.get_context("spawn")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for dataset in parser.parse_args().datasets:
        for case in CASES:
            with ProcessPoolExecutor(1, mp_context=spawn) as fresh:
                users, seconds, mib = fresh.submit(measure, dataset, case).result()
            rate = f"{users / seconds:9,.0f} users/s"
            print(f"{dataset:8} {case:14} {seconds:7.2f} s {rate} {mib:6.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
