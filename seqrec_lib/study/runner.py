"""Doing the runs of a study: one at a time, or many side by side, whatever interrupts them.

Where a run stands is known from files alone. Its record says that it is done; its checkpoint
holds its epochs so far; a lock says that some process works on it. So any number of commands,
killed at any moment, on one machine or on several that share a folder, end with the same
records as one command left in peace.

What is done at a time is a *job*: one run, or runs that differ in their seed alone and are
trained as one batched model, as suits a GPU. A job of several seeds has one checkpoint, named by
its seeds, so that it goes on as it began even where some of its records were written already.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout

from ..device import device as pick_device
from ..training import TrainingDiverged
from .grid import Run
from .measuring import run_job, split_and_hash
from .progress import Progress, duration, estimate, remaining
from .provenance import code_version
from .records import Store, writable_dir
from .scratch import Job, Scratch, name_of
from .spreading import Outcome, one_thread_each, outcomes, spread

__all__ = ["Report", "run_grid"]


@dataclass
class Report:
    """What a command did: runs by how they ended."""

    done: list[Run] = field(default_factory=list)
    skipped: list[Run] = field(default_factory=list)
    busy: list[Run] = field(default_factory=list)
    cut: list[Run] = field(default_factory=list)
    failed: dict[Run, str] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        if outcome.status == "failed":
            self.failed[outcome.run] = outcome.detail
        else:
            getattr(self, outcome.status).append(outcome.run)


def run_grid(
    runs: Iterable[Run],
    *,
    results: str | os.PathLike | None = None,
    scratch: str | os.PathLike = "runs",
    jobs: int = 1,
    threads: int = 1,
    device: str = "auto",
    backend: str = "loky",
    seeds_at_once: bool | None = None,
    time_limit: float | None = None,
    keep_models: str | os.PathLike | None = None,
    say: Callable[[str], None] = print,
) -> Report:
    """Do all runs that have no record yet, or one of other settings, which is set aside.

    Args:
        results: the folder of records; by default the checkout's.
        scratch: the folder of checkpoints, locks and tracebacks; may be deleted between commands.
        jobs: runs done at a time, each on ``threads`` cores. One run to a core is the best use
            of a CPU by far.
        backend: "loky" (processes here, by joblib) or "dask" (wherever the current
            ``dask.distributed.Client`` has workers, which must see the same folders).
        seeds_at_once: train runs that differ in their seed alone as one batched model; by
            default on a GPU, where five cost less than two.
        time_limit: begin no run and no epoch after so many minutes. What is cut keeps its
            checkpoint, and the next command goes on from there.
        keep_models: a folder for the trained models; None keeps none.
        say: is told of each run that ends.

    Returns:
        the :class:`Report`. A run that fails does not end the study; its traceback is in the
        report, and in ``scratch``.

    Raises:
        PermissionError: this is an installed release, and ``results`` is left out.
        OSError: nothing can be written to ``results`` or ``scratch``; no run was begun.
        ValueError: a worker of the Dask cluster has several threads, or two of ``runs`` are one
            run in two configurations.
    """
    store, scratch, report = Store(writable_dir(results)), Scratch(scratch), Report()
    for folder in (store.root, scratch.folder):  # before hours of training, not after
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    if backend == "dask":
        jobs = one_thread_each() or jobs
    todo, report.skipped = _sort_out(runs, store, scratch, say)
    if seeds_at_once is None:
        seeds_at_once = pick_device(device).type == "cuda"
    jobs_todo = scratch.jobs(todo) if seeds_at_once else [(run,) for run in todo]
    done = set(report.skipped)  # of which some are trained again with the other seeds of a job
    if more := [run for job in jobs_todo for run in job if run not in done | set(todo)]:
        say(f"{len(more)} runs more, which were begun with these: {', '.join(map(str, more))}")
    expected = estimate((run for job in jobs_todo for run in job if run not in done), store, device)
    seconds = remaining(expected, scratch).values()
    longest, together = max(seconds, default=0.0), sum(seconds) / jobs
    say(
        f"{len(expected)} runs to do, {len(done)} done before; "
        f"about {duration(max(together, longest))}"
    )
    work = partial(
        _perform,
        results=store.root.resolve(),
        scratch=scratch,
        threads=threads,
        device=device,
        keep_models=keep_models and Path(keep_models).resolve(),
        code=code_version(),
        master=os.getpid() if backend == "loky" else None,
        deadline=time.time() + 60 * time_limit if time_limit is not None else math.inf,
    )
    with Progress(expected, scratch, jobs, say) as progress:
        for outcome in spread(work, jobs_todo, jobs, backend, scratch):
            if outcome.run in done:  # of seeds that were cut while their records were written
                continue
            report.add(outcome)
            if outcome.status != "cut":
                progress.ended(outcome.run, here=outcome.status == "done")
                progress.say(f"[{progress}] {outcome.run}: {_summary(outcome)}")
    return report


def _sort_out(
    runs: Iterable[Run], store: Store, scratch: Scratch, say: Callable[[str], None]
) -> tuple[list[Run], list[Run]]:
    """Which runs are to do, and which are done.

    Sets damaged records aside, and puts away what a killed command left of runs that are done;
    neither where another process is at the run.
    """
    known: dict[str, Run] = {}
    for run in runs:
        if known.setdefault(run.key, run).config != run.config:
            raise ValueError(f"{run} is there twice, with different configurations")
    todo, done = [], []
    for run in known.values():
        state = store.state(run)
        if state == "outdated":
            say(f"outdated: {store.path(run)} will be set aside: {store.changes(run)}")
        elif state == "damaged" or (state == "done" and scratch.checkpoint((run,)).exists()):
            with contextlib.suppress(Timeout), scratch.hold(run):
                now = store.state(run)  # nobody can change it any more
                if now == "damaged":
                    aside = store.set_aside(run)
                    say(f"damaged: {store.path(run)} is set aside as {aside.name}")
                elif now == "done":  # its command may have been killed before it could clean up
                    scratch.drop_checkpoint((run,))
        (done if state == "done" else todo).append(run)
    return todo, done


def _summary(outcome: Outcome) -> str:
    if outcome.status == "busy":
        return "another process is at it"
    if outcome.status == "failed":
        return f"FAILED: {outcome.detail.strip().splitlines()[-1]}"
    record = outcome.record
    return (
        f"NDCG@10 {record['test']['NDCG@10']:.4f}, filtered "
        f"{record['test_filtered']['NDCG@10']:.4f}; {record['epochs']} epochs in "
        f"{duration(record['seconds'])}"
    )


# ---- one job -----------------------------------------------------------------------------


class OutOfTime(Exception):  # noqa: N818 (it names what happened)
    """The command may not begin another epoch."""


def _orphaned(master: int | None) -> bool:
    """Whether the command that started this process is gone (None: a cluster's did)."""
    return master is not None and master not in (os.getpid(), os.getppid())


def _perform(
    job: Job, results: Path, scratch: Scratch, master: int | None, deadline: float, **options: Any
) -> list[Outcome]:
    """One job, from its locks to its records."""
    if _orphaned(master):  # and was given its next job before
        os._exit(1)
    if time.time() > deadline:
        return outcomes(job, "cut")
    store = Store(results)
    try:
        with contextlib.ExitStack() as locks:
            for run in job:
                # `status` holds a lock for a moment, to see whether it is free
                locks.enter_context(scratch.hold(run, patience=0.5))
            scratch.drop_half_written(job)
            _complete(job, store, scratch, master, deadline, options)
            scratch.put_away(job, store)
            return [Outcome(run, "done", record=store.read(run)) for run in job]
    except Timeout:
        return outcomes(job, "busy")
    except OutOfTime:
        found = {run: store.read(run) for run in job if store.state(run) == "done"}
        return [
            Outcome(run, "done", record=found[run]) if found.get(run) else Outcome(run, "cut")
            for run in job
        ]
    except KeyboardInterrupt:
        if _orphaned(master):  # nobody waits for this process, which else would wait for work
            os._exit(1)
        raise
    except Exception as error:
        detail = traceback.format_exc()
        with contextlib.suppress(OSError):  # a full disk, perhaps: the report has it, too
            beyond_one = isinstance(error, TrainingDiverged | torch.OutOfMemoryError)
            scratch.note_failure(job, detail, apart=beyond_one)
    if len(job) == 1:
        return outcomes(job, "failed", detail)
    # One seed diverged, or all together took too much memory: let the others not pay for it.
    reason = detail.strip().splitlines()[-1]
    warnings.warn(f"{name_of(job)} failed ({reason}); its seeds are done one by one", stacklevel=2)
    alone = {"results": results, "scratch": scratch, "master": master, "deadline": deadline}
    return [end for run in job for end in _perform((run,), **alone, **options)]


def _complete(
    job: Job,
    store: Store,
    scratch: Scratch,
    master: int | None,
    deadline: float,
    options: dict[str, Any],
) -> None:
    """Do what has no record of a job, and write each record as soon as it is there."""
    # Some may have been done by another process, since we looked.
    missing = [run for run in job if store.state(run) != "done"]
    if not missing:
        return
    _refuse_other_data(store, job[0])
    for run in missing:
        scratch.traceback(run).unlink(missing_ok=True)  # of another try
        scratch.marker(run).write_text("{}")

    def on_epoch(which: int, entry: dict[str, float]) -> None:
        if _orphaned(master):
            raise KeyboardInterrupt("the command that started this run is gone")
        scratch.marker(job[which]).write_text(json.dumps(entry))
        if time.time() > deadline:
            raise OutOfTime

    here = {"checkpoint": scratch.checkpoint(job), "on_epoch": on_epoch}
    for run, record in run_job(job, measured=set(job) - set(missing), **here, **options):
        if (why := store.state(run)) in ("outdated", "damaged"):
            store.set_aside(run, why)
        store.write(run, record)
        missing.remove(run)
        if missing and time.time() > deadline:
            raise OutOfTime


def _refuse_other_data(store: Store, run: Run) -> None:
    """Raise ValueError where records of a run's data set are of another file or world than here."""
    _, here = split_and_hash(run)
    if others := store.of_other_data(run, here):
        raise ValueError(
            f"{len(others)} records of {run.dataset} are of other data than there is here, such as "
            f"{others[0]}: in one table they would be compared. Write to another folder "
            "(--results), get the data they were made with, or set them aside"
        )
