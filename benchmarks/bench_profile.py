"""Where the time of an epoch goes: its shares by kind of operation.

    python benchmarks/bench_profile.py [--datasets beauty ml-1m]

An epoch of SASRec as in ``bench_training.py``, in float32, under torch's profiler, which slows it
a little; so shares are kept, not speeds. The profiler counts what each operator spends itself,
and every operator belongs to the first kind below that it, or one it was called by, answers to.
"""

from __future__ import annotations

from collections import Counter

from _common import arguments, report
from bench_training import LENGTH, load, without_validation
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

import seqrec_lib as sr

PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::addmm_", "aten::baddbmm")

#: kind -> how the names of its operators begin; the loss is told apart below.
KINDS = {
    "optimiser": ("Optimizer.step", "aten::_fused_adam"),
    "dropout": ("_Drop",),
    "softmax of the attention": ("_MaskedSoftmax",),
    "LayerNorm": ("aten::native_layer_norm",),
    "embedding": ("aten::embedding", "EmbeddingBackward"),
    "products of the blocks": PRODUCTS,
}


def kind(event: FunctionEvent) -> str:
    """What an operator is spent on."""
    names, each = [], event
    while each is not None:
        names.append(each.name)
        each = each.cpu_parent
    if any(name.startswith("_ChunkedCrossEntropy") for name in names):
        return "products of the loss" if event.name in PRODUCTS else "rest of the loss"
    for found, starts in KINDS.items():
        if any(name.startswith(starts) for name in names):
            return found
    return "all else: sums, masks, copies"


def shares(dataset: str, users: int | None) -> list[dict]:
    """One epoch, after one that warms up: rows of (what, share), the largest first."""
    split = without_validation(sr.leave_one_out(load(dataset, users)))
    model = sr.SASRec(split.num_items, max_len=LENGTH[dataset], dim=64, dropout=0.2, seed=0)

    def epoch():
        return sr.fit(model, split, epochs=1, device="cpu", progress=False)

    epoch()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        epoch()
    spent = Counter()
    for event in profiled.events():
        spent[kind(event)] += event.self_cpu_time_total
    total = sum(spent.values())
    return [{"what": what, "share": part / total} for what, part in spent.most_common()]


def main() -> None:
    options = arguments(__doc__, datasets=list(LENGTH))
    for dataset in options.datasets:
        rows = shares(dataset, 300 if options.tiny else None)
        report(f"profile-{dataset}", options, rows, dataset=dataset, precision="float32")


if __name__ == "__main__":
    main()
