"""Where a run stands, in one file, so that it can go on after anything."""

from __future__ import annotations

import io
import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..files import atomic_path, plain

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: str | os.PathLike, identity: dict[str, Any], **state: Any) -> None:
    """Write tensors and plain data, atomically. ``identity`` says which run this is."""
    file = io.BytesIO()  # torch.save itself would not say that a disk is full
    torch.save({"identity": _text(identity), **state}, file)
    with atomic_path(path) as temporary:
        temporary.write_bytes(file.getbuffer())


def _text(identity: dict[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True, default=plain)


def load_checkpoint(path: str | os.PathLike, identity: dict[str, Any]) -> dict[str, Any] | None:
    """What :func:`save_checkpoint` wrote; None where there is nothing to go on from.

    A damaged file is set aside as ``*.damaged`` with a warning.

    Raises:
        ValueError: the file belongs to a run with other settings; they are named.
    """
    path, mine = Path(path), json.loads(_text(identity))  # what cannot be kept fails now, not later
    if not path.exists():
        return None
    file = io.BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(file) as archive:  # torch.load does not look at the checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} has another checksum")
        file.seek(0)
        saved = torch.load(file, map_location="cpu", weights_only=True)
        theirs = json.loads(saved["identity"])
    except Exception as error:  # there is no end to what damaged bytes make a reader raise
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise  # the file is as good as it was
        aside = path.with_name(path.name + ".damaged")
        os.replace(path, aside)
        warnings.warn(
            f"{path} could not be read ({error}); it is now {aside.name}, and training "
            "starts from the beginning",
            stacklevel=3,
        )
        return None
    differing = [
        f"{key}: {theirs.get(key)!r} there, {mine.get(key)!r} here"
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key)
    ]
    if differing:
        raise ValueError(
            f"{path} is the checkpoint of another run ({'; '.join(differing)}); "
            "give this run another file, or delete that one"
        )
    return saved
