"""Which device to compute on."""

from __future__ import annotations

import os

import torch

__all__ = ["device"]


def device(name: str = "auto") -> torch.device:
    """The device to use: ``name``, else ``$SEQREC_DEVICE``, else CUDA when there is one, else CPU.

    Raises:
        RuntimeError: CUDA is asked for where there is none.
    """
    if name == "auto":
        name = os.environ.get("SEQREC_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(name)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"device {name!r} was asked for, but torch sees no CUDA device; "
            "unset SEQREC_DEVICE or pass device='cpu'"
        )
    return chosen
