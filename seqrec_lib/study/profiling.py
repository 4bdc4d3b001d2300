"""Profiles of data sets, kept as files: whoever has no data can still see them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..analysis.profile import profile
from ..data import leave_one_out, load_dataset
from ..files import atomic_path
from .provenance import code_version, data_sha256
from .records import PROFILES, results_dir, rounded, writable_dir

__all__ = ["profiles", "write_profile"]


def write_profile(dataset: str, root: str | os.PathLike | None = None) -> Path:
    """Write ``profiles/<dataset>.json`` in a folder of results, of the leave-one-out split.

    Args:
        dataset: a key of ``DATASETS``.
        root: by default the checkout's results.

    Raises:
        PermissionError: this is an installed release, and ``root`` is left out.
    """
    path = writable_dir(root) / PROFILES / f"{dataset}.json"
    inter = load_dataset(dataset)
    split = leave_one_out(inter)
    found = {
        "dataset": dataset,
        "split": split.name,
        **rounded(profile(split)),
        "data_sha256": data_sha256(inter),
        "code_version": code_version(),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path


def profiles(root: str | os.PathLike | None = None):
    """The profiles that were written, a row for each data set: :func:`~seqrec_lib.profile`'s names.

    Returns:
        a pandas DataFrame indexed by data set; empty where there is no profile.
    """
    import pandas as pd

    folder = Path(results_dir() if root is None else root) / PROFILES
    paths = sorted(folder.glob("[!.]*.json"))
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return pd.DataFrame(rows, columns=None if rows else ["dataset"]).set_index("dataset")
