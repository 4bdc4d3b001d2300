"""Full-ranking evaluation: users per second and peak memory.

    python benchmarks/bench_ranking.py [--datasets beauty ml-1m]

Each case runs in a process of its own, on an idle machine, several times; the fastest counts.
"products" is only the multiplication of queries with items, which no full ranking can do
without; "sort" is the obvious way, which sorts every user's scores. The SASRec is untrained:
what the scores are makes no difference to the time.
"""

from __future__ import annotations

import numpy as np
import torch
from _common import arguments, fastest, in_fresh_process, report

import seqrec_lib as sr
from seqrec_lib.data.batching import pad

MAX_LEN = {"ml-1m": 200, "ml-100k": 200}
WHOLE = "SASRec, 256 users at once"
CASES = ("products", "SASRec", WHOLE, "SASRec, sort", "Popularity", "MarkovChain", "ItemKNN")


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


def measure(dataset: str, case: str, repeats: int, tiny: bool) -> tuple[int, float]:
    """(users, seconds)."""
    log = sr.load_dataset(dataset)
    split = sr.leave_one_out(log.select_users(np.arange(300)) if tiny else log)
    if case in ("Popularity", "MarkovChain", "ItemKNN"):
        model = getattr(sr, case)().fit(split)
    else:
        model = sr.SASRec(split.num_items, max_len=MAX_LEN.get(dataset, 50))
    at_once = 256 if case == WHOLE else None
    work = {"products": products, "SASRec, sort": rank_by_sorting}.get(
        case, lambda model, part: sr.evaluate(model, split, batch_size=at_once)
    )
    return len(split.test), fastest(lambda: work(model, split.test), repeats)


def main() -> None:
    options, rows = arguments(__doc__, datasets=["beauty", "ml-1m"]), []
    for dataset in options.datasets:
        for case in CASES:
            (users, seconds), mib = in_fresh_process(
                measure, dataset, case, options.repeats, options.tiny
            )
            rows.append({"dataset": dataset, "case": case, "seconds": seconds,
                         "users_per_second": users / seconds, "peak_mib": mib})  # fmt: skip
    report("ranking", options, rows)


if __name__ == "__main__":
    main()
