"""What runs will take, and how far they are."""

from __future__ import annotations

import inspect
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TextIO

import numpy as np
from filelock import Timeout
from tqdm import tqdm

from ..data import DATASETS, worlds
from ..device import device as pick_device
from .grid import AXES, BASELINES, NEURAL, WORLD, Run
from .scratch import Scratch

__all__ = ["Expected", "Progress", "duration", "estimate", "operations", "remaining", "under_way"]

#: Multiplications and additions a second that one core may be expected to do in training.
RATE = 2.5e10
#: Of the epochs a run may have, the share it is expected to need where no record tells.
SHARE = 0.5


# ---- cost --------------------------------------------------------------------------------


def operations(run: Run) -> float:
    """Multiplications and additions of one epoch, from the published size of the data."""
    config = run.config
    if run.model in BASELINES:
        return 0.0
    if run.dataset.startswith(WORLD):
        world = getattr(worlds, run.dataset.removeprefix(WORLD))
        sizes = {name: p.default for name, p in inspect.signature(world).parameters.items()}
        sizes |= config["data"]
        users, items, events = sizes["num_users"], sizes["num_items"], sizes["length"]
        events *= users
    else:
        sizes = DATASETS[run.dataset].statistics
        users, items, events = sizes["users"], sizes["items"], sizes["interactions"]
    positions = min(events, users * config["max_len"])
    length = min(events / users, config["max_len"])
    width = config["dim"]
    scored = items if run.loss == "ce" else 1 + config["negatives"]
    block = 6 * width**2 + 2 * length * width
    if run.attention.startswith("awrsr"):  # its tokens are rows of the map, its width is max_len
        block += 3 * length * config["max_len"] + 2 * length**2
    return 6 * positions * (scored * width + config["num_blocks"] * block)


class Expected(NamedTuple):
    """What a run may take."""

    seconds: float
    epochs: float


def estimate(
    runs: Iterable[Run], records: Iterable[Mapping[str, Any]], device: str = "auto"
) -> dict[Run, Expected]:
    """What each run may take.

    Seconds an operation, and the share of its epochs that it needs, are those of the records
    nearest to it: of its data set, split, model and weighting, else of fewer of these. Of other
    data only the pace counts, and half the epochs are expected; without a record made on such a
    device, a core does ``RATE``.
    """
    where, known = pick_device(device).type, {}
    for record in records:
        if record["model"] in NEURAL and record["device"].startswith(where):
            run = Run(**{name: record[name] for name in AXES}, config=record["config"])
            pace = record["seconds"] / (operations(run) * record["epochs"])
            share = record["epochs"] / run.config["epochs"]
            for near in _near(run):
                known.setdefault(near, []).append((pace, share if near else SHARE))

    def one(run: Run) -> Expected:
        if run.model in BASELINES:
            return Expected(1.0, 1.0)
        seen = next((known[near] for near in _near(run) if near in known), [(1 / RATE, SHARE)])
        pace, share = np.median(seen, axis=0)
        epochs = share * run.config["epochs"]
        return Expected(float(operations(run) * pace * epochs), float(epochs))

    return {run: one(run) for run in runs}


def _near(run: Run) -> tuple[tuple[str, ...], ...]:
    one = (run.dataset, run.split, run.model)
    return (*one, run.attention), one, (run.dataset, run.model), ()


# ---- progress ----------------------------------------------------------------------------


class Progress:
    """How far a study is, by what its runs were expected to take; runs under way count, too.

    They are found by their markers, on whatever machine they are, every ``EVERY`` seconds. On a
    terminal it is a bar, elsewhere nothing is drawn.

    Args:
        expected: the runs that are to be done.
        scratch: has their markers.
        jobs: how many are done at a time.
        say: prints a line; see :meth:`say`.
        file: where to draw; by default on standard error.
    """

    EVERY = 2.0

    def __init__(
        self,
        expected: Mapping[Run, Expected],
        scratch: Scratch,
        jobs: int = 1,
        say: Callable[[str], None] = print,
        file: TextIO | None = None,
    ):
        self.expected, self.scratch, self.jobs, self._say = dict(expected), scratch, jobs, say
        self.left = {scratch.marker(run): run for run in self.expected}
        self.shares = dict.fromkeys(self.expected, 0.0)
        self.bar = tqdm(
            total=max(self._seconds(), 1e-9), bar_format="{percentage:3.0f}%|{bar:12}| {desc}",
            file=file, leave=False, dynamic_ncols=True, disable=None,
        )  # fmt: skip
        self._lock, self._stop = threading.Lock(), threading.Event()
        self.start, self.before = time.perf_counter(), math.inf  # no pace is known yet
        self.look()
        self.before = self.done()  # by an earlier command, at no pace of ours

    def __enter__(self) -> Progress:
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watcher.join()
        self.bar.close()

    def say(self, text: str) -> None:
        """Print a line without tearing the bar."""
        with tqdm.external_write_mode():
            self._say(text)

    def ended(self, run: Run, here: bool = True) -> None:
        """A run is over; what was not done here counts no more, as if it had not been to do."""
        with self._lock:
            del self.left[self.scratch.marker(run)]
            self.shares[run] = 1.0
            if not here:
                del self.expected[run]
        self.look()

    def look(self) -> None:
        """See how far the runs under way are, and draw that."""
        with self._lock:
            under_way = []
            for path in self.scratch.folder.glob("*.running"):
                run = self.left.get(path)
                with suppress(OSError, ValueError):  # it may end, or be written, while we look
                    if run and (epoch := json.loads(path.read_text()).get("epoch")):
                        self.shares[run] = min(epoch / self.expected[run].epochs, 1.0)
                        under_way.append(f"{run}: epoch {epoch}")
            self.bar.total, self.bar.n = max(self._seconds(), 1e-9), self.done()
            told = [str(self), *under_way[:1]]
            if len(under_way) > 1:
                told.append(f"{len(under_way) - 1} more begun")
            self.bar.set_description_str("; ".join(told))

    def done(self) -> float:
        """Expected seconds of what is done."""
        return sum(self.shares[run] * each.seconds for run, each in self.expected.items())

    def seconds_left(self) -> float:
        """By the pace so far, else by what was expected."""
        done, todo = self.done(), self._seconds() - self.done()
        if done <= self.before:
            return todo / self.jobs
        return todo * (time.perf_counter() - self.start) / (done - self.before)

    def __str__(self) -> str:
        ended = len(self.expected) - len(self.left)
        return f"{ended}/{len(self.expected)}, {duration(self.seconds_left())} left"

    def _seconds(self) -> float:
        return sum(each.seconds for each in self.expected.values())

    def _watch(self) -> None:
        while not self._stop.wait(self.EVERY):
            self.look()


def remaining(expected: Mapping[Run, Expected], scratch: Scratch) -> dict[Run, float]:
    """Seconds that runs may still take, after the epochs that were done of them."""

    def share(run: Run, epochs: float) -> float:
        with suppress(OSError, ValueError):
            return min(json.loads(scratch.marker(run).read_text()).get("epoch", 0) / epochs, 1.0)
        return 0.0

    return {run: each.seconds * (1 - share(run, each.epochs)) for run, each in expected.items()}


def under_way(scratch: Scratch, run: Run) -> str:
    """ "running, epoch 3 of 60"; "cut at epoch 3, .." if its process is gone; "" if not begun."""
    try:
        epoch = json.loads(scratch.marker(run).read_text()).get("epoch")
    except FileNotFoundError:
        return ""
    except ValueError:  # it is being written, or was when its process was killed
        epoch = None
    if _locked(scratch, run):
        return "running" + (f", epoch {epoch} of {run.config['epochs']}" if epoch else "")
    return f"cut {f'at epoch {epoch}' if epoch else 'early'}, the same command goes on"


def _locked(scratch: Scratch, run: Run) -> bool:
    """Whether some process holds the run's lock, which is gone with it however it ends."""
    if not scratch.lock(run).exists():  # a look makes none
        return False
    try:
        with scratch.hold(run):
            return False
    except Timeout:
        return True


def duration(seconds: float) -> str:
    """ "40 s", "12 min" or "3.5 h"."""
    if seconds < 99:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
