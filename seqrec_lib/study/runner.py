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
import hashlib
import json
import math
import os
import platform
import subprocess
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..analysis.intervene import intervene
from ..analysis.refinement import refinement_by_position
from ..analysis.statistics import attention_statistics
from ..data import Interactions, load_dataset, worlds
from ..data.splits import Split
from ..device import device as pick_device
from ..evaluation import Metrics, evaluate
from ..files import atomic_path
from ..models import save
from ..models.weighting import Refined
from ..training import TrainingDiverged, fit, fit_seeds
from .grid import BASELINES, NEURAL, SPLITS, WORLD, Run, arguments
from .progress import Progress, duration, estimate, marker, remaining
from .records import Store, rounded, writable_dir

__all__ = ["Outcome", "Report", "code_version", "run_grid", "run_one"]

#: Lower ends of the groups of test users by the length of their history.
LENGTHS = (1, 5, 10, 20, 50, 100, 200)
#: How many of the last positions the average maps and profiles show.
RECENT = 15
#: Weightings put into the trained model, to see what it is worth with them.
SWAPS = ("uniform", "last")

#: Runs that are done together.
Job = tuple[Run, ...]


class OutOfTime(Exception):  # noqa: N818 (it names what happened)
    """The command may not begin another epoch."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    "done", "failed" (``detail`` is the traceback), "busy" elsewhere, or "cut" by the time limit.
    """

    run: Run
    status: str
    detail: str = ""
    record: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass
class Report:
    """What a command did: runs by how they ended."""

    done: list[Run] = field(default_factory=list)
    skipped: list[Run] = field(default_factory=list)
    busy: list[Run] = field(default_factory=list)
    cut: list[Run] = field(default_factory=list)
    failed: dict[Run, str] = field(default_factory=dict)


# ---- one job -----------------------------------------------------------------------------


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
    _reset_peak_memory(where)
    try:
        split, sha256 = _data(run.dataset, run.split, json.dumps(run.config["data"]))
        by = {"code_version": code or code_version(), "device": _describe(where),
              "threads": threads, **_versions()}  # fmt: skip
        if checkpoint is not None:
            by = _went_on(Path(checkpoint), run, sha256, by)
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
                "peak_memory_mb": _peak_memory(where),
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


@lru_cache(maxsize=1)
def _data(dataset: str, split: str, drawn: str) -> tuple[Split, str]:
    """A data set, split, and its hash; the last one is kept, for runs come data set by data set."""
    if dataset.startswith(WORLD):
        inter = getattr(worlds, dataset.removeprefix(WORLD))(**json.loads(drawn))
    else:
        inter = load_dataset(dataset)
    return SPLITS[split](inter), data_sha256(inter)


def data_sha256(inter: Interactions) -> str:
    """SHA-256 of a log as models see it: its items, user after user in time order, and its clock.

    It does not depend on the file's format, nor on ids and titles.
    """
    digest = hashlib.sha256()
    for array in (inter.sequences.values, inter.sequences.offsets, inter.timestamps):
        if array is not None:
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()


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


# ---- provenance --------------------------------------------------------------------------


def code_version() -> str:
    """The commit of the checkout, with "+dirty" where the library differs; else its version."""
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # a checkout of this, not of its user's
        return git("rev-parse", "HEAD")[:12] + ("+dirty" if git("status", "-s", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        from .. import __version__

        return __version__


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "numpy", "scipy")}
    return {"python": platform.python_version(), **packages}


def _describe(where: torch.device) -> str:
    if where.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(where)}"
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")][0]
    return f"cpu: {name}"


def _reset_peak_memory(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.init()  # else cuda:0, with its number, is no device to the allocator
        torch.cuda.reset_peak_memory_stats(where)
    with contextlib.suppress(OSError):  # Linux; elsewhere the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory(where: torch.device) -> float:
    """Of the device's allocations on a GPU, else of the process; in MiB."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / 2**20
    # On Linux, what getrusage says starts at the peak of whoever started this process.
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2 ** (20 if platform.system() == "Darwin" else 10)


# ---- many runs ---------------------------------------------------------------------------


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
    store, scratch, report = Store(writable_dir(results)), Path(scratch).resolve(), Report()
    for folder in (store.root, scratch):  # before hours of training, not after
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    if backend == "dask":
        jobs = _one_thread_each() or jobs
    todo, known = [], {}
    for run in runs:
        if known.setdefault(run.key, run).config != run.config:
            raise ValueError(f"{run} is there twice, with different configurations")
    for run in known.values():
        state = store.state(run)
        if state == "damaged":
            say(f"damaged: {store.path(run)} is set aside as {store.set_aside(run).name}")
        elif state == "outdated":
            say(f"outdated: {store.path(run)} will be set aside: {store.changes(run)}")
        elif state == "done":  # its command may have been killed before it could clean up
            for path in (left := _checkpoint(scratch, (run,)), _settings(left)):
                path.unlink(missing_ok=True)
        (report.skipped if state == "done" else todo).append(run)
    if seeds_at_once is None:
        seeds_at_once = pick_device(device).type == "cuda"
    jobs_todo = _jobs(todo, scratch) if seeds_at_once else [(run,) for run in todo]
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
        for outcome in _spread(work, jobs_todo, jobs, backend, scratch):
            run = outcome.run
            if run in done:  # of seeds that were cut while their records were written
                continue
            if outcome.status == "cut":
                report.cut.append(run)
                continue
            progress.ended(run, here=outcome.status == "done")
            if outcome.status == "done":
                report.done.append(run)
                how = _summary(outcome.record)
            elif outcome.status == "busy":
                report.busy.append(run)
                how = "another process is at it"
            else:
                report.failed[run] = outcome.detail
                how = f"FAILED: {outcome.detail.strip().splitlines()[-1]}"
            progress.say(f"[{progress}] {run}: {how}")
    return report


def _one_thread_each() -> int:
    """How many workers there are, of one thread each: jobs in threads of one process would share
    torch's generators, and no seed could repeat them."""
    from distributed import get_client

    threads = get_client().nthreads()
    if several := [worker for worker, n in threads.items() if n > 1]:
        raise ValueError(
            f"a run needs a process of its own, but {len(several)} of {len(threads)} Dask workers "
            f"have several threads, such as {several[0]}: start them with --nthreads 1"
        )
    return len(threads)


def _jobs(todo: list[Run], scratch: Path) -> list[Job]:
    """All seeds of a setting together; where some were cut, the same ones again."""
    settings: dict[str, list[Run]] = {}
    for run in todo:
        settings.setdefault(run.key.rpartition(".seed")[0], []).append(run)
    jobs = []
    for runs in settings.values():
        seeds = {run.seed for run in runs}
        for checkpoint, begun in _begun_at_once(runs[0], scratch):
            if seeds <= {run.seed for run in begun} and _beside(checkpoint):
                jobs.append(tuple(begun))
                break
        else:  # what was begun alone, or is better off so, goes on alone
            alone = [run for run in runs if _beside(_checkpoint(scratch, (run,)))
                     or _apart(scratch, run).exists()]  # fmt: skip
            together = tuple(run for run in runs if run not in alone)
            jobs += [*([together] if together else []), *((run,) for run in alone)]
    return jobs


def _begun_at_once(run: Run, scratch: Path) -> Iterator[tuple[Path, list[Run]]]:
    """The checkpoints of several seeds of a run's setting, and the runs that each is of."""
    before, after = f"{run.key.rpartition('.seed')[0]}.seeds", f".{_digest(run)}.pt"
    for checkpoint in sorted(scratch.glob(f"{before}*{after}")):
        seeds = checkpoint.name.removeprefix(before).removesuffix(after).split("-")
        if all(map(str.isdecimal, seeds)):  # else of a variant of such a name
            yield checkpoint, [replace(run, seed=int(seed)) for seed in seeds]


def _left_behind(run: Run, scratch: Path, store: Store) -> list[Path]:
    """Checkpoints of several seeds, all of which were then done in another company, or alone."""
    return [
        checkpoint for checkpoint, runs in _begun_at_once(run, scratch)
        if all(store.state(other) == "done" for other in runs)
    ]  # fmt: skip


def _name(job: Sequence[Run]) -> str:
    """The key of its run; of several, with all their seeds."""
    setting, _, seed = job[0].key.rpartition(".seed")
    if len(job) == 1:
        return f"{setting}.seed{seed}"
    return f"{setting}.seeds{'-'.join(str(run.seed) for run in job)}"


def _checkpoint(scratch: Path, job: Sequence[Run]) -> Path:
    """Of its configuration, too: another study in the same scratch may have one of that name."""
    return scratch / f"{_name(job)}.{_digest(job[0])}.pt"


def _digest(run: Run) -> str:
    return hashlib.sha256(json.dumps(_plain(run), sort_keys=True).encode()).hexdigest()[:8]


def _apart(scratch: Path, run: Run) -> Path:
    """There if the run's seeds, trained as one, failed: it is done alone from then on."""
    return scratch / f"{run.key}.apart"


def _summary(record: dict[str, Any]) -> str:
    return (
        f"NDCG@10 {record['test']['NDCG@10']:.4f}, filtered "
        f"{record['test_filtered']['NDCG@10']:.4f}; {record['epochs']} epochs in "
        f"{duration(record['seconds'])}"
    )


def _spread(work, todo: list[Job], jobs: int, backend: str, scratch: Path) -> Iterator[Outcome]:
    """Outcomes as they come; a worker that is killed (for its memory, say) costs its job alone."""
    if backend == "dask":
        yield from _on_dask(work, todo)
        return
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky.process_executor import BrokenProcessPool

    def parallel(some: Iterable[Job], processes: int) -> Iterator[list[Outcome]]:
        with parallel_config(backend):
            pool = Parallel(processes, batch_size=1, return_as="generator_unordered")
        return pool(delayed(work)(job) for job in some)

    left, suspects, start = {job[0].key: job for job in todo}, [], time.time()
    while left:
        try:
            for outcomes in parallel(list(left.values()), jobs):
                del left[outcomes[0].run.key]
                yield from outcomes
        except BrokenProcessPool:
            # One of the jobs under way did it: they are tried again at the end, one by one.
            begun = [key for key in left if _touched(marker(scratch, left[key][0]), start)]
            suspects += [left.pop(key) for key in begun or list(left)]
    for job in suspects:
        try:
            for outcomes in parallel([job], 2):  # two: so that it is not done in this process
                yield from outcomes
        except BrokenProcessPool:
            yield from _all(job, "failed", "its process was killed twice; was it out of memory?")


def _touched(path: Path, since: float) -> bool:
    """Whether a marker is of this command, and not of one that was cut."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime >= since - 1
    return False


def _on_dask(work, todo: list[Job]) -> Iterator[Outcome]:
    """By Dask's own futures: joblib's back-end waits for ever for a job whose worker was killed."""
    from distributed import as_completed, get_client

    client, suspects = get_client(), []
    jobs = {client.submit(work, job, pure=False): job for job in todo}
    for future in as_completed(jobs):
        if future.exception() is None:
            yield from future.result()
        else:  # it may only have been waiting where another one was killed
            suspects.append(jobs[future])
    for job in suspects:
        future = client.submit(work, job, pure=False)
        error = future.exception()
        yield from _all(job, "failed", str(error)) if error else future.result()


def _orphaned(master: int | None) -> bool:
    """Whether the command that started this process is gone (None: a cluster's did)."""
    return master is not None and master not in (os.getpid(), os.getppid())


def _perform(
    job: Job, results: Path, scratch: Path, master: int | None, deadline: float, **options: Any
) -> list[Outcome]:
    """One job, from its locks to its records."""
    from filelock import FileLock, Timeout

    if _orphaned(master):  # and was given its next job before
        os._exit(1)
    if time.time() > deadline:
        return _all(job, "cut")
    store, checkpoint = Store(results), _checkpoint(scratch, job)

    def on_epoch(which: int, entry: dict[str, float]) -> None:
        if _orphaned(master):
            raise KeyboardInterrupt("the command that started this run is gone")
        marker(scratch, job[which]).write_text(json.dumps(entry))
        if time.time() > deadline:
            raise OutOfTime

    try:
        with contextlib.ExitStack() as locks:
            for run in job:
                locks.enter_context(FileLock(scratch / f"{run.key}.lock").acquire(timeout=0))
            # Whoever wrote to these was killed: the locks are ours.
            for path in (checkpoint, _settings(checkpoint)):
                for leftover in scratch.glob(f".{path.name}.*"):
                    leftover.unlink()
            # Some may have been done by another process, since we looked.
            missing = [run for run in job if store.state(run) != "done"]
            if missing:
                _refuse_other_data(store, job[0])
                for run in missing:
                    _failed(scratch, run).unlink(missing_ok=True)  # of another try
                    marker(scratch, run).write_text("{}")
                here = {"checkpoint": checkpoint, "on_epoch": on_epoch}
                there = set(job) - set(missing)
                for run, record in run_job(job, measured=there, **here, **options):
                    if store.state(run) == "outdated":
                        store.set_aside(run, "outdated")
                    store.write(run, record)
                    missing.remove(run)
                    if missing and time.time() > deadline:
                        raise OutOfTime
            alone = [_checkpoint(scratch, (run,)) for run in job]
            for path in (checkpoint, *alone, *_left_behind(job[0], scratch, store)):
                path.unlink(missing_ok=True)
                _settings(path).unlink(missing_ok=True)
            for run in job:
                _failed(scratch, run).unlink(missing_ok=True)
                _apart(scratch, run).unlink(missing_ok=True)
                marker(scratch, run).unlink(missing_ok=True)
            return [Outcome(run, "done", record=store.read(run)) for run in job]
    except Timeout:
        return _all(job, "busy")
    except OutOfTime:
        cut = set(missing)
        return [
            Outcome(run, "cut") if run in cut else Outcome(run, "done", record=store.read(run))
            for run in job
        ]
    except KeyboardInterrupt:
        if _orphaned(master):  # nobody waits for this process, which else would wait for work
            os._exit(1)
        raise
    except Exception as error:
        detail = traceback.format_exc()
        with contextlib.suppress(OSError):  # a full disk, perhaps: the report has it, too
            for run in job:
                marker(scratch, run).unlink(missing_ok=True)
                _failed(scratch, run).write_text(detail)
            if len(job) > 1 and isinstance(error, (TrainingDiverged, torch.OutOfMemoryError)):
                checkpoint.unlink(missing_ok=True)  # it would again
                for run in job:
                    _apart(scratch, run).touch()
    if len(job) == 1:
        return _all(job, "failed", detail)
    # One seed diverged, or all together took too much memory: let the others not pay for it.
    reason = detail.strip().splitlines()[-1]
    warnings.warn(f"{_name(job)} failed ({reason}); its seeds are done one by one", stacklevel=2)
    alone = {"results": results, "scratch": scratch, "master": master, "deadline": deadline}
    return [end for run in job for end in _perform((run,), **alone, **options)]


def _refuse_other_data(store: Store, run: Run) -> None:
    """Raise ValueError where records of a run's data set are of another file or world than here."""
    here = _data(run.dataset, run.split, json.dumps(run.config["data"]))[1]
    if others := store.of_other_data(run, here):
        raise ValueError(
            f"{len(others)} records of {run.dataset} are of other data than there is here, such as "
            f"{others[0]}: in one table they would be compared. Write to another folder "
            "(--results), get the data they were made with, or set them aside"
        )


def _all(job: Job, status: str, detail: str = "") -> list[Outcome]:
    return [Outcome(run, status, detail) for run in job]


def _failed(scratch: Path, run: Run) -> Path:
    """The traceback of a run that failed."""
    return scratch / f"{run.key}.failed.txt"


def _settings(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".json")


def _beside(checkpoint: Path) -> dict[str, Any]:
    """What is known of a checkpoint; nothing where it is not there, or nothing is known."""
    try:
        known = json.loads(_settings(checkpoint).read_text()) if checkpoint.exists() else {}
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _plain(run: Run) -> dict[str, Any]:
    return json.loads(json.dumps(dict(run.config)))


def _went_on(checkpoint: Path, run: Run, sha256: str, now: dict[str, Any]) -> dict[str, Any]:
    """By which code, on what device, .. a job is done from its beginning: "a, then b".

    A checkpoint of another configuration or of other data is deleted.
    """
    known, of = _beside(checkpoint), {"config": _plain(run), "data_sha256": sha256}
    if any(known.get(name) != value for name, value in of.items()):
        checkpoint.unlink(missing_ok=True)
        known = {}
    by = {}
    for name, here in now.items():
        before = known.get(name, [])
        by[name] = before if before[-1:] == [here] else [*before, here]
    with atomic_path(_settings(checkpoint)) as temporary:
        temporary.write_text(json.dumps({**of, **by}))
    return {
        name: told[0] if len(told) == 1 else ", then ".join(map(str, told))
        for name, told in by.items()
    }
