"""With what a record was made: code, versions, data, device, memory."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from ..data import Interactions
from ..device import has_bfloat16

__all__ = [
    "code_version",
    "data_sha256",
    "describe",
    "peak_memory",
    "reset_peak_memory",
    "versions",
]


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


def versions() -> dict[str, str]:
    """Of Python, and of the libraries that compute."""
    packages = {name: version(name) for name in ("torch", "numpy", "scipy")}
    return {"python": platform.python_version(), **packages}


def data_sha256(inter: Interactions) -> str:
    """SHA-256 of a log as models see it: its items, user after user in time order, and its clock.

    It does not depend on the file's format, nor on ids and titles.
    """
    digest = hashlib.sha256()
    for array in (inter.sequences.values, inter.sequences.offsets, inter.timestamps):
        if array is not None:
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()


def describe(where: torch.device) -> str:
    """ "cuda: " or "cpu: ", and the name of the GPU or processor, and whether it lacks bfloat16."""
    if where.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(where)}"
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")][0]
    return f"cpu: {name}" + ("" if has_bfloat16(where) else ", without bfloat16")


def reset_peak_memory(where: torch.device) -> None:
    """Let :func:`peak_memory` count from here."""
    if where.type == "cuda":
        torch.cuda.init()  # else cuda:0, with its number, is no device to the allocator
        torch.cuda.reset_peak_memory_stats(where)
    with contextlib.suppress(OSError):  # Linux; elsewhere the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(where: torch.device) -> float:
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
