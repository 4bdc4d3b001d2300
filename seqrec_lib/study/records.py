"""What a run measured: one small JSON file, checked whenever it is read.

Every record ends in a checksum of all that stands before it, so that a file that was cut short,
damaged or edited by hand is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shlex
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.catalogue import DATASETS
from ..files import atomic_path
from .grid import AXES, WORLD, Run, defaults, load_grid, select

__all__ = ["DamagedRecord", "Store", "results", "results_dir"]

#: The fields of a record, and what each must be.
SCHEMA: dict[str, type | tuple[type, ...]] = {
    "dataset": str, "split": str, "model": str, "attention": str, "loss": str, "seed": int,
    "variant": str, "config": dict,
    "validation": dict, "validation_filtered": dict, "test": dict, "test_filtered": dict,
    "by_length": dict,  # "10-19": {"users": .., "test": {..}, "test_filtered": {..}}
    "mixing": dict,  # statistic -> a value per layer
    "profile": dict,  # "by_position", "maps": as attention_statistics, to three digits
    "swapped": dict,  # "uniform": {"test": {..}, "test_filtered": {..}}: other weights, untrained
    "curve": dict,  # "loss", "NDCG@10", ..: a value per epoch
    "epochs": int, "best_epoch": int, "stopped": str, "parameters": int,
    "users": dict, "data_sha256": str,
    "seconds": (int, float), "peak_memory_mb": (int, float), "device": str, "threads": (int, str),
    "code_version": str, "versions": dict, "finished": str,
}  # fmt: skip
#: The fields that hold metrics.
PARTS = ("validation", "validation_filtered", "test", "test_filtered")
#: Fields that came later, and what they are where they are missing.
LATER = {"seeds_at_once": 1}  # how many seeds were trained as one batched model
#: A folder beside the records: of data sets, not of runs.
PROFILES = "profiles"
#: When and by which commit a run was done; all else two executions on one machine share.
VOLATILE = ("seconds", "peak_memory_mb", "finished", "code_version", "checksum")


class DamagedRecord(ValueError):  # noqa: N818 (it names what was found)
    """A file that should be a record is not a whole one."""


class Store:
    """The records of a folder, one file each, at :attr:`Run.path`.

    Args:
        root: the folder; by default :func:`results_dir`.
    """

    def __init__(self, root: str | os.PathLike | None = None):
        self.root = Path(root) if root is not None else results_dir()

    def path(self, run: Run) -> Path:
        return self.root / run.path

    def write(self, run: Run, record: Mapping[str, Any]) -> Path:
        """Write a record, atomically; what was measured keeps six significant digits.

        Raises:
            ValueError: it is not a record.
        """
        plain = {**run.axes, "config": run.plain_config}
        record = {**plain, **rounded({k: v for k, v in record.items() if k not in plain})}
        record["checksum"] = _checksum(record)
        validate(record)
        path = self.path(run)
        lines = (f'"{name}": {json.dumps(value)}' for name, value in record.items())
        with atomic_path(path) as temporary:
            temporary.write_text("{" + ",\n ".join(lines) + "}\n", encoding="utf-8")
        return path

    def read(self, run: Run) -> dict[str, Any] | None:
        """The record of ``run``; None where there is none, or one made with other settings.

        Raises:
            DamagedRecord: there is a file, but not a whole record.
        """
        try:
            record = read_record(self.path(run))
        except FileNotFoundError:
            return None
        return None if _changed(run, record["config"]) else record

    def state(self, run: Run) -> str:
        """ "done", "missing", "outdated" (made with other settings) or "damaged"."""
        try:
            if self.read(run) is not None:
                return "done"
        except DamagedRecord:
            return "damaged"
        return "outdated" if self.path(run).exists() else "missing"

    def changes(self, run: Run) -> str:
        """How an outdated record was made, and how the run would be: "dim 8, now 12"."""
        changed = _changed(run, read_record(self.path(run))["config"])
        return "; ".join(f"{name} {was}, now {now}" for name, (was, now) in changed.items())

    def of_other_data(self, run: Run, sha256: str) -> list[Path]:
        """Whole records of the run's data set, drawn alike if it is a world, with another hash."""
        drawn, found = run.plain_config["data"], []
        for path in sorted(self.path(run).parent.glob("[!.]*.json")):
            with contextlib.suppress(DamagedRecord):
                record = read_record(path)
                mine = (record["dataset"], record["config"].get("data")) == (run.dataset, drawn)
                if mine and record["data_sha256"] != sha256:
                    found.append(path)
        return found

    def set_aside(self, run: Run, why: str = "damaged") -> Path:
        """Rename a record that is damaged or outdated: out of the way, but not lost."""
        path, number = self.path(run), 1
        aside = path.with_name(f"{path.name}.{why}")
        while aside.exists():  # nor is what was set aside before
            number += 1
            aside = path.with_name(f"{path.name}.{why}-{number}")
        return path.replace(aside)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All records, in the order of their names; a damaged one is left out with a warning."""
        for path in sorted(self.root.glob("*/[!.]*.json")):  # hidden: half-written
            if path.parent.name in ("benchmarks", PROFILES):  # timings and data sets, not runs
                continue
            try:
                yield read_record(path)
            except DamagedRecord as error:
                warnings.warn(
                    f"{error}; it is left out, and {self._remedy()} makes it again",
                    stacklevel=2,
                )

    def _remedy(self) -> str:
        here = self.root.resolve() == results_dir().resolve()
        folder = "" if here else f" --results {shlex.quote(os.fspath(self.root))}"
        return f"`python -m seqrec_lib study run{folder}` (with the --grid of these records)"


def results_dir() -> Path:
    """The results of the checkout that holds the library, else those installed with it."""
    package = Path(__file__).parents[1]
    checkout = package.parent / "results"
    return checkout if (package.parent / "pyproject.toml").is_file() else _installed()


def _installed() -> Path:
    """The records that an installed release brings along."""
    return Path(__file__).parents[1] / "_results"


def writable_dir(root: str | os.PathLike | None = None) -> Path:
    """``root``, or the checkout's results.

    Raises:
        PermissionError: these are the records that an installed release brings along.
    """
    root = Path(results_dir() if root is None else root)
    if root.resolve() == _installed().resolve():
        raise PermissionError(
            f"{root} holds the records of the installed release, and nothing is added to them: "
            "name a folder of your own (--results DIR)"
        )
    return root


def results(root: str | os.PathLike | None = None, **only: Any):
    """The records as a table, one row a run; ``results(dataset="beauty", seed=[0, 1])``.

    Columns: what names a run (``dataset``, ``split``, ``model``, ``attention``, ``loss``,
    ``seed``, ``variant``), each metric as ``"test NDCG@10"``, ``"test_filtered NDCG@10"``,
    ``"validation NDCG@10"`` and plain ``"NDCG@10"``, which is on test by the run's own
    :func:`ruler`, the mean over layers of each mixing statistic as
    ``"mixing attn_res_ln"``, and the other fields as they are (``config``, ``curve``,
    ``mixing``, ``by_length``, ``swapped``, ``profile`` hold dictionaries).

    Args:
        root: a folder of records; by default the checkout's, else the installed release's.
        only: keep the rows whose column has this value, or one of these values.

    Returns:
        a pandas DataFrame, empty (but with its first columns) where there is no record.

    Raises:
        KeyError: there is no such column.
        ValueError: no record has such a ``dataset``, ``attention``, .., nor does the plan (or, of
            data sets, the catalogue) know it.
    """
    import pandas as pd

    table = pd.DataFrame([_row(record) for record in Store(root)])
    if table.empty:
        table = pd.DataFrame(columns=list(SCHEMA))
    kept = table
    for name, values in only.items():
        if name not in table:
            raise KeyError(f"records have no {name!r}; they have {', '.join(table.columns)}")
        column, values = kept[name], values_of(values)
        if name in AXES:  # a seed may be written as text, as on the command line
            column, values = column.astype(str), list(map(str, values))
            if unknown := {*values} - {*table[name].astype(str)} - {*DATASETS}:
                select(load_grid("main"), {name: unknown})  # planned, perhaps; else a slip
        kept = kept[column.isin(values)]
    return kept.reset_index(drop=True)


def values_of(given: Any) -> list[Any]:
    """One value, or those of several, as a list."""
    several = hasattr(given, "__iter__") and not isinstance(given, str)
    return list(given) if several else [given]


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: record.get(name, LATER.get(name)) for name in (*SCHEMA, *LATER)}
    for part in PARTS:
        row |= {f"{part} {name}": value for name, value in row.pop(part).items()}
    row |= record[ruler(record)]
    row |= {
        f"mixing {name}": np.mean([np.nan if x is None else x for x in layers])
        for name, layers in record["mixing"].items()
    }
    return row


def ruler(record: Mapping[str, Any]) -> str:
    """The part of a record to judge it by: the ranking by which its epochs were chosen.

    That is "test_filtered" (new items are ranked) unless the configuration says otherwise, as it
    does where items return: a target that was seen stays, and its seen rivals would not.
    """
    new_items = not record["dataset"].startswith(WORLD)  # what counts pairs chooses no epoch
    return "test_filtered" if record["config"].get("filter_seen", new_items) else "test"


def score(record: Mapping[str, Any], metric: str, group: Mapping[str, Any] | None = None) -> float:
    """``metric`` of a record, or of a ``group`` of its users or a swap: "test NDCG@10", or plain
    "NDCG@10", by its :func:`ruler`."""
    *part, name = metric.split(" ")
    return (record if group is None else group)[part[0] if part else ruler(record)][name]


def read_record(path: Path) -> dict[str, Any]:
    """One record, checked.

    Raises:
        DamagedRecord: it is not JSON, lacks a field, is not what was written, or is the record of
            another run than its name says.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        validate(record)
        of = Run(**{name: record[name] for name in AXES})
        if path.parts[-2:] != of.path.parts:
            raise ValueError(f"it is the record of {of}")
    except ValueError as error:
        raise DamagedRecord(f"{path} is no whole record ({error})") from error
    return record


def validate(record: Any) -> None:
    """Raise ValueError where ``record`` is not one; the message says what is wrong."""
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    for name, kind in SCHEMA.items():
        if not isinstance(record.get(name), kind):
            raise ValueError(f"the field {name!r} is missing or of the wrong type")
    for part in PARTS:
        for name, value in record[part].items():
            if not (isinstance(value, (int, float)) and 0 <= value <= 1):
                raise ValueError(f"{part} {name} is {value!r}, not a number between 0 and 1")
    for part in ("test", "test_filtered"):
        if not {"HR@10", "NDCG@10"} <= record[part].keys():
            raise ValueError(f"{part} lacks HR@10 or NDCG@10")
    if record.get("checksum") != _checksum(record):
        raise ValueError("its checksum is not that of its content")


def comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """What two executions of one run must agree on: all but times, memory, commit."""
    kept = {name: value for name, value in record.items() if name not in VOLATILE}
    curve = {name: values for name, values in record["curve"].items() if name != "seconds"}
    return {**kept, "curve": curve}


def _changed(run: Run, made_with: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where a record's configuration is not the run's: setting -> (the record's, the run's).

    A setting the record does not know was added later: it was at its default then.
    """
    made_with = {**defaults(run.model), **made_with}
    return {
        key: (made_with.get(key), value)
        for key, value in run.plain_config.items()
        if made_with.get(key) != value
    }


def _checksum(record: Mapping[str, Any]) -> str:
    content = {name: value for name, value in record.items() if name != "checksum"}
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rounded(value: Any, digits: int = 6) -> Any:
    """The same with plain numbers of so many significant digits; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value
