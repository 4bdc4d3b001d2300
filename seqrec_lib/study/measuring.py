"""Training and measuring: what one job's records say."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Container, Iterator
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..analysis.intervene import intervene
from ..analysis.refinement import refinement_by_position
from ..analysis.statistics import attention_statistics
from ..data import load_dataset, worlds
from ..data.splits import Split
from ..device import device as pick_device
from ..evaluation import Metrics, evaluate
from ..models import save
from ..models.weighting import Refined
from ..training import fit, fit_seeds
from .grid import BASELINES, NEURAL, SPLITS, WORLD, Run, arguments
from .provenance import (
    code_version,
    data_sha256,
    describe,
    peak_memory,
    reset_peak_memory,
    versions,
)
from .records import rounded
from .scratch import Job, went_on

__all__ = ["run_job", "run_one", "split_and_hash"]

#: Lower ends of the groups of test users by the length of their history.
LENGTHS = (1, 5, 10, 20, 50, 100, 200)
#: How many of the last positions the average maps and profiles show.
RECENT = 15
#: Weightings put into the trained model, to see what it is worth with them.
SWAPS = ("uniform", "last")


def run_one(run: Run, **options: Any) -> dict[str, Any]:
    """The record of one run; see :func:`run_job`, whose options these are."""
    ((_, record),) = run_job((run,), **options)
    return record


def run_job(
    job: Job,
    *,
    device: str = "auto",
    threads: int = 1,
    checkpoint: str | os.PathLike | None = None,
    keep_models: str | os.PathLike | None = None,
    code: str | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    measured: Container[Run] = (),
) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Train and measure; yields each run, as soon as it is measured, with the fields of its record
    that the run does not hold itself.

    Args:
        job: runs that differ in their seed alone. One is trained by :func:`~seqrec_lib.fit`,
            several at once by :func:`~seqrec_lib.fit_seeds`; ``seconds`` is then a seed's share,
            and the peak memory that of all.
        device: as in :func:`~seqrec_lib.fit`.
        threads: of torch on a CPU; part of the record, for sums depend on their order.
        checkpoint: as in :func:`~seqrec_lib.fit`; a file beside it says by which code and on what
            device the job was begun, and where it went on by or on another, the record names all.
        keep_models: a folder for the trained models.
        code: the version of the code, where it was found out before.
        on_epoch: called with (which run, the entry of its history).
        measured: runs that are trained with the others, as they were before, but not measured.
    """
    where, before, run = pick_device(device), torch.get_num_threads(), job[0]
    if run.model in BASELINES:
        where = torch.device("cpu")
    torch.set_num_threads(threads)
    reset_peak_memory(where)
    try:
        split, sha256 = split_and_hash(run)
        by = {"code_version": code or code_version(), "device": describe(where),
              "threads": threads, **versions()}  # fmt: skip
        if checkpoint is not None:
            by = went_on(Path(checkpoint), run, sha256, by)
        code, device, threads_told = (
            by.pop(name) for name in ("code_version", "device", "threads")
        )
        if run.model in BASELINES:
            trained = [_fit_baseline(run, split)]
        else:
            trained = _fit_neural(job, split, where, checkpoint, on_epoch)
        for run, (model, training) in zip(job, trained, strict=True):
            if run in measured:
                continue
            if keep_models is not None and run.model in NEURAL:
                save(model, Path(keep_models) / f"{run.key}.safetensors")
            yield run, {
                **_measure(run, model, split), **training,
                "users": {"training": split.train.num_users, "validation": len(split.validation),
                          "test": len(split.test)},
                "data_sha256": sha256,
                "seeds_at_once": len(job),
                "peak_memory_mb": peak_memory(where),
                "device": device, "threads": threads_told,
                "code_version": code, "versions": by,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            }  # fmt: skip
    finally:
        torch.set_num_threads(before)


def _fit_neural(job: Job, split: Split, where: torch.device, checkpoint, on_epoch):
    run = job[0]
    kind, settings = NEURAL[run.model], run.config["weighting"]
    attention = {"name": run.attention, **settings} if settings else run.attention
    sizes = arguments(kind, run.config)
    seeds = [each.seed for each in job]
    models = [kind(split.num_items, **sizes, attention=attention, seed=seed) for seed in seeds]
    options = {**arguments(fit, run.config), "device": str(where), "checkpoint": checkpoint}
    if len(job) == 1:
        one = on_epoch and partial(on_epoch, 0)
        options |= {"seed": run.seed, "on_epoch": one}
        histories = [fit(*models, split, run.loss, progress=False, **options)]
    else:
        options |= {"seeds": seeds, "on_epoch": on_epoch}
        histories = fit_seeds(models, split, run.loss, progress=False, **options)
    return [
        (model, {
            "curve": {name: history.column(name) for name in history.epochs[0] if name != "epoch"},
            "epochs": len(history),
            "best_epoch": history.best_epoch,
            "stopped": history.stopped,
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": history.seconds,
        })
        for model, history in zip(models, histories, strict=True)
    ]  # fmt: skip


def _fit_baseline(run: Run, split: Split):
    kind, start = BASELINES[run.model], time.perf_counter()
    model = kind(**arguments(kind, run.config)).fit(split)
    seconds = time.perf_counter() - start
    return model, {
        "curve": {},
        "epochs": 0,
        "best_epoch": 0,
        "stopped": "counted",
        "parameters": 0,
        "seconds": seconds,
    }


def split_and_hash(run: Run) -> tuple[Split, str]:
    """The data of a run, split, and their hash."""
    return _load(run.dataset, run.split, json.dumps(run.config["data"]))


@lru_cache(maxsize=1)  # runs come data set by data set
def _load(dataset: str, split: str, drawn: str) -> tuple[Split, str]:
    if dataset.startswith(WORLD):
        inter = getattr(worlds, dataset.removeprefix(WORLD))(**json.loads(drawn))
    else:
        inter = load_dataset(dataset)
    return SPLITS[split](inter), data_sha256(inter)


def _measure(run: Run, model, split: Split) -> dict[str, Any]:
    test, validation = evaluate(model, split), None
    if len(split.validation):  # a refit has none
        validation = evaluate(model, split, part="validation")
    inside = {"mixing": {}, "profile": {}, "swapped": {}}
    return {
        "validation": validation or {},
        "validation_filtered": validation.filtered if validation else {},
        "test": test, "test_filtered": test.filtered,
        "by_length": _by_length(test, split),
        **(_inside(model, split) if run.model in NEURAL else inside),
    }  # fmt: skip


def _by_length(test: Metrics, split: Split) -> dict[str, Any]:
    """Test metrics of users grouped by the length of their history."""
    groups = np.digitize(split.test.histories.lengths, LENGTHS) - 1
    labels = [f"{low}-{high - 1}" for low, high in zip(LENGTHS, LENGTHS[1:], strict=False)]
    labels.append(f"{LENGTHS[-1]}+")
    names = ("HR@1", "HR@10", "NDCG@10")
    return {
        labels[group]: {
            "users": found.num_users,
            "test": {name: found[name] for name in names},
            "test_filtered": {name: found.filtered[name] for name in names},
        }
        for group, found in test.by(groups).items()
    }


def _inside(model, split: Split) -> dict[str, Any]:
    """How the model mixes on the test histories, and what it is worth with other weights."""
    found = attention_statistics(model, split, recent=RECENT)
    profile = {
        name: [layer[:RECENT] for layer in layers] for name, layers in found["by_position"].items()
    }
    coarse = rounded({"by_position": profile, "maps": found["maps"]}, digits=3)
    swaps, swapped = dict(zip(SWAPS, SWAPS, strict=True)), {}
    if isinstance(model.blocks[0].attention.weighting, Refined):
        part = "validation" if len(split.validation) else "test"  # no target is looked at
        swaps["refinement-by-position"] = refinement_by_position(model, split, part)
    for name, change in swaps.items():
        with intervene(model, change):
            test = evaluate(model, split)
        swapped[name] = {"test": test, "test_filtered": test.filtered}
    return {"mixing": found["mixing"], "profile": coarse, "swapped": swapped}
