"""Which device to compute on, and how precisely."""

from __future__ import annotations

import contextlib
import os

import torch

__all__ = ["device", "full_precision", "has_bfloat16"]

_SEEDED = ("cpu", "cuda", "meta")


def device(name: str = "auto") -> torch.device:
    """The device to use: ``name``, else ``$SEQREC_DEVICE``, else CUDA when there is one, else CPU.

    Raises:
        ValueError: there is no such kind of device, or nothing here was made for it.
        RuntimeError: CUDA is asked for where there is none, or not so many.
    """
    if name == "auto":
        name = os.environ.get("SEQREC_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"no device {name!r}; give auto, cpu, cuda or cuda:1") from error
    if chosen.type not in _SEEDED:
        raise ValueError(
            f"the library seeds {', '.join(_SEEDED)}, and could repeat no run on {name!r}"
        )
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"device {name!r} was asked for, but torch sees no CUDA device; "
            "ask for device cpu, and unset SEQREC_DEVICE if that named it"
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= (there := torch.cuda.device_count()) > 0:
        raise RuntimeError(f"device {name!r} was asked for; CUDA devices: {there}, from cuda:0")
    return chosen


def has_bfloat16(where: torch.device) -> bool:
    """Whether bfloat16 saves time there: a CPU without instructions for it takes many times longer
    than for float32."""
    if where.type != "cpu":
        return True
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not in every torch
    return any(getattr(torch.cpu, name, bool)() for name in asked)


def full_precision(where: torch.device) -> contextlib.AbstractContextManager:
    """Inside, there is no autocast on ``where``: for small differences of large numbers."""
    if not torch.amp.is_autocast_available(where.type):  # "meta", which has shapes alone
        return contextlib.nullcontext()
    return torch.autocast(where.type, enabled=False)
