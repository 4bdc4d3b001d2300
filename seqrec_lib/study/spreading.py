"""Many jobs side by side: on the cores of this machine, or wherever a Dask cluster has workers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .grid import Run
from .scratch import Job, Scratch

__all__ = ["Outcome", "one_thread_each", "outcomes", "spread"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    "done", "failed" (``detail`` is the traceback), "busy" elsewhere, or "cut" by the time limit.
    """

    run: Run
    status: str
    detail: str = ""
    record: dict[str, Any] = field(default_factory=dict, repr=False)


def outcomes(job: Job, status: str, detail: str = "") -> list[Outcome]:
    return [Outcome(run, status, detail) for run in job]


def one_thread_each() -> int:
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


def spread(
    work: Callable[[Job], list[Outcome]],
    todo: list[Job],
    jobs: int,
    backend: str,
    scratch: Scratch,
) -> Iterator[Outcome]:
    """Outcomes as they come; a worker that is killed (for its memory, say) costs its job alone."""
    if backend == "dask":
        yield from _on_dask(work, todo, scratch)
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
            for done in parallel(list(left.values()), jobs):
                del left[done[0].run.key]
                yield from done
        except BrokenProcessPool:
            # One of the jobs under way did it: they are tried again at the end, one by one.
            begun = [key for key in left if _touched(scratch.marker(left[key][0]), start)]
            suspects += [left.pop(key) for key in begun or list(left)]
    for job in suspects:
        try:
            for done in parallel([job], 2):  # two: so that it is not done in this process
                yield from done
        except BrokenProcessPool:
            yield from _killed(job, scratch, "its process was killed twice; was it out of memory?")


def _touched(path: Path, since: float) -> bool:
    """Whether a marker is of this command, and not of one that was cut."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime >= since - 1
    return False


def _on_dask(work, todo: list[Job], scratch: Scratch) -> Iterator[Outcome]:
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
        if (error := future.exception()) is None:
            yield from future.result()
        else:
            yield from _killed(job, scratch, str(error))


def _killed(job: Job, scratch: Scratch, why: str) -> list[Outcome]:
    """What is left of a job whose process could leave no note itself."""
    with contextlib.suppress(OSError):
        scratch.note_failure(job, why, apart=True)
    return outcomes(job, "failed", why)
