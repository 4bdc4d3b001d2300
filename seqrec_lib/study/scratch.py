"""Where runs stand that are not done: the scratch folder, and what its files mean.

A run has a lock while some process works on it, a marker that holds its last epoch, a traceback if
it failed, and a mark that it be done apart if its seeds failed together. A job has a checkpoint of
its epochs so far. Once all records are written nothing of this is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..files import atomic_path
from .grid import Run
from .records import Store

__all__ = ["Job", "Scratch", "name_of", "origin_of", "went_on"]

#: Runs that are done together; they differ in their seed alone.
Job = tuple[Run, ...]


class Scratch:
    """The folder of all these files; any number of commands share it, and several studies.

    The name of each file tells the run and, by a digest, its configuration.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).resolve()

    def lock(self, run: Run) -> Path:
        """Held, by whatever process works on the run, until it ends in whatever way."""
        return self._file(run, "lock")

    def hold(self, run: Run, patience: float = 0.0) -> AbstractContextManager:
        """The run's lock, for a ``with``.

        Raises:
            filelock.Timeout: another process has had it for ``patience`` seconds.
        """
        return FileLock(self.lock(run)).acquire(timeout=patience)

    def marker(self, run: Run) -> Path:
        """There from a run's beginning until it is done; it holds its last epoch."""
        return self._file(run, "running")

    def traceback(self, run: Run) -> Path:
        """There if the run failed."""
        return self._file(run, "failed.txt")

    def apart(self, run: Run) -> Path:
        """There if the run's seeds, trained as one, failed: it is done alone from then on."""
        return self._file(run, "apart")

    def _file(self, run: Run, suffix: str) -> Path:
        return self.folder / f"{run.key}.{_digest(run)}.{suffix}"

    def checkpoint(self, job: Sequence[Run]) -> Path:
        """There as soon as an epoch of the job is done."""
        return self.folder / f"{name_of(job)}.{_digest(job[0])}.pt"

    # ---- what was begun ----------------------------------------------------------------------

    def jobs(self, todo: Sequence[Run]) -> list[Job]:
        """All seeds of a setting together; where some were cut, the same ones again."""
        settings: dict[str, list[Run]] = {}
        for run in todo:
            settings.setdefault(run.key.rpartition(".seed")[0], []).append(run)
        jobs = []
        for runs in settings.values():
            seeds = {run.seed for run in runs}
            for checkpoint, begun in self.begun_at_once(runs[0]):
                if seeds <= {run.seed for run in begun} and beside(checkpoint):
                    jobs.append(tuple(begun))
                    break
            else:  # what was begun alone, or is better off so, goes on alone
                alone = [
                    run for run in runs
                    if beside(self.checkpoint((run,))) or self.apart(run).exists()
                ]  # fmt: skip
                together = tuple(run for run in runs if run not in alone)
                jobs += [*([together] if together else []), *((run,) for run in alone)]
        return jobs

    def begun_at_once(self, run: Run) -> Iterator[tuple[Path, list[Run]]]:
        """The checkpoints of several seeds of a run's setting, and the runs that each is of."""
        before, after = f"{run.key.rpartition('.seed')[0]}.seeds", f".{_digest(run)}.pt"
        for checkpoint in sorted(self.folder.glob(f"{before}*{after}")):
            seeds = checkpoint.name.removeprefix(before).removesuffix(after).split("-")
            if all(map(str.isdecimal, seeds)):  # else of a variant of such a name
                yield checkpoint, [replace(run, seed=int(seed)) for seed in seeds]

    # ---- putting away ------------------------------------------------------------------------

    def drop_half_written(self, job: Job) -> None:
        """Checkpoints that were being written when their process was killed; hold the locks."""
        checkpoint = self.checkpoint(job)
        for path in (checkpoint, origin_of(checkpoint)):
            for leftover in self.folder.glob(f".{path.name}.*"):
                leftover.unlink()

    def drop_checkpoint(self, job: Sequence[Run]) -> None:
        _unlink(self.checkpoint(job))

    def note_failure(self, job: Job, detail: str, apart: bool = False) -> None:
        """Leave each run's traceback; seeds that cannot be trained as one are parted for good."""
        for run in job:
            self.marker(run).unlink(missing_ok=True)
            self.traceback(run).write_text(detail)
        if apart and len(job) > 1:
            self.drop_checkpoint(job)  # it would fail again
            for run in job:
                self.apart(run).touch()

    def put_away(self, job: Job, store: Store) -> None:
        """Everything of a job whose runs are done."""
        checkpoints = [self.checkpoint(job), *(self.checkpoint((run,)) for run in job)]
        for checkpoint, runs in self.begun_at_once(job[0]):
            # of several seeds, all of which were then done in another company, or alone
            if all(store.state(other) == "done" for other in runs):
                checkpoints.append(checkpoint)
        for checkpoint in checkpoints:
            _unlink(checkpoint)
        for run in job:
            for path in (self.traceback(run), self.apart(run), self.marker(run)):
                path.unlink(missing_ok=True)


def name_of(job: Sequence[Run]) -> str:
    """The key of its run; of several, with all their seeds."""
    setting, _, seed = job[0].key.rpartition(".seed")
    if len(job) == 1:
        return f"{setting}.seed{seed}"
    return f"{setting}.seeds{'-'.join(str(run.seed) for run in job)}"


def _digest(run: Run) -> str:
    text = json.dumps(run.plain_config, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _unlink(checkpoint: Path) -> None:
    for path in (checkpoint, origin_of(checkpoint)):
        path.unlink(missing_ok=True)


# ---- what stands beside a checkpoint -----------------------------------------------------


def origin_of(checkpoint: Path) -> Path:
    """The file that says how a checkpoint's job was begun."""
    return checkpoint.with_suffix(".json")


def beside(checkpoint: Path) -> dict[str, Any]:
    """What is known of a checkpoint; nothing where it is not there, or nothing is known."""
    known = {}
    with suppress(OSError, ValueError):
        known = json.loads(origin_of(checkpoint).read_text()) if checkpoint.exists() else {}
    return known if isinstance(known, dict) else {}


def went_on(checkpoint: Path, run: Run, sha256: str, now: dict[str, Any]) -> dict[str, Any]:
    """By which code, on what device, .. a job is done from its beginning: "a, then b".

    A checkpoint of another configuration or of other data is deleted.
    """
    known, of = beside(checkpoint), {"config": run.plain_config, "data_sha256": sha256}
    if any(known.get(name) != value for name, value in of.items()):
        checkpoint.unlink(missing_ok=True)
        known = {}
    by = {}
    for what, here in now.items():
        before = known.get(what, [])
        by[what] = before if before[-1:] == [here] else [*before, here]
    with atomic_path(origin_of(checkpoint)) as temporary:
        temporary.write_text(json.dumps({**of, **by}))
    return {
        what: told[0] if len(told) == 1 else ", then ".join(map(str, told))
        for what, told in by.items()
    }
