"""Loading the data sets of the catalogue: find, fetch, check, parse, and remember.

A file is looked for in ``data_dir``, in ``$SEQREC_DATA``, in the cache, and is then downloaded to
the cache (``$SEQREC_CACHE``, by default the system's folder for caches). Files appear in the
cache whole or not at all, so processes that load at once share it without locks: at worst both
do the same work.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import html
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..files import atomic_path
from .catalogue import DATASETS, DataFile, DatasetInfo, Source, Titles
from .interactions import Interactions, Ragged
from .reading import read_interactions

__all__ = ["cache_dir", "load_dataset"]

PARSED = 1  # raise when parsing changes: older parsed forms are then left alone


def load_dataset(name: str, data_dir: str | os.PathLike | None = None) -> Interactions:
    """Load a data set of the catalogue.

    Args:
        name: a key of ``DATASETS``.
        data_dir: where to look first, before ``$SEQREC_DATA``, the cache and the network.

    Returns:
        The log, with titles where the publisher has them. ``DATASETS[name].note`` says what was
        filtered and what the order means.

    Raises:
        ValueError: there is no data set of this name.
        FileNotFoundError: no copy was found and none could be fetched; the message says which
            file to put where.

    Warns:
        UserWarning: a file differs from the published one, in content or in statistics.
    """
    if name not in DATASETS:
        raise ValueError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    return _load(DATASETS[name], data_dir)


def cache_dir() -> Path:
    """Where downloads and parsed forms are kept."""
    if folder := os.environ.get("SEQREC_CACHE"):
        return Path(folder)
    try:
        import pooch
    except ImportError:  # it only downloads: data that is there needs none
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "seqrec_lib")
    return Path(pooch.os_cache("seqrec_lib"))


def _load(info: DatasetInfo, data_dir: str | os.PathLike | None) -> Interactions:
    folders = [Path(d) for d in (data_dir, os.environ.get("SEQREC_DATA"), cache_dir()) if d]
    source, log = _find(info, folders)
    files = [source.log, source.titles and source.titles.file, source.item_map]
    paths = [log, *(file and _optional(file, folders) for file in files[1:])]
    digests = [path and _sha256(path) for path in paths]

    key = hashlib.sha256(repr((PARSED, source, digests)).encode()).hexdigest()[:16]
    parsed = cache_dir() / "parsed" / f"{info.name}-{key}.npz"
    inter = _remembered(parsed, lambda: _parse(info.name, source, *paths))

    wrong = [
        f"{inter.statistics[what]:,} {what}, not {published:,}"
        for what, published in info.statistics.items()
        if inter.statistics[what] != published
    ] + [
        f"SHA-256 of {path.name} is {digest}, not {file.sha256}"
        for file, path, digest in zip(files, paths, digests, strict=True)
        if path and file.sha256 not in (None, digest)
    ]
    if wrong:
        warnings.warn(
            f"{log} is not the published {info.title}: {'; '.join(wrong)}. Results on it do not "
            "compare with published ones; delete what differs to fetch it anew.",
            stacklevel=3,
        )
    return inter


# ---- finding and fetching ----------------------------------------------------------------


def _find(info: DatasetInfo, folders: list[Path]) -> tuple[Source, Path]:
    """The first source whose log is in a folder, else the first that can be fetched."""
    for folder in folders:
        for source in info.sources:
            if (folder / source.log.path).is_file():
                return source, folder / source.log.path
    problems = []
    for source in info.sources:
        if source.log.urls:
            try:
                return source, _fetch(source.log)
            except OSError as error:
                problems.append(str(error))
    places = " or ".join(str(folders[0] / source.log.path) for source in info.sources)
    raise FileNotFoundError(
        f"{info.title} is in none of {', '.join(map(str, folders))}, and was not fetched.\n"
        + "\n".join([*problems, info.by_hand or f"By hand: get it from {info.homepage}"])
        + f"\nPut the file at {places}, or set SEQREC_DATA to a folder that holds it so."
    )


def _optional(file: DataFile, folders: list[Path]) -> Path | None:
    """A file that one can do without: found, fetched, or None with a warning."""
    for folder in folders:
        if (folder / file.path).is_file():
            return folder / file.path
    try:
        return _fetch(file)
    except OSError as error:
        warnings.warn(f"going on without {file.path}, so without titles: {error}", stacklevel=4)
        return None


def _fetch(file: DataFile) -> Path:
    """Download a file to the cache, trying its addresses in turn.

    Raises:
        OSError: no address gave the right file; the message says what each one gave.
    """
    try:
        import pooch
    except ImportError:
        raise OSError(f"{file.path}: downloading needs pooch (pip install pooch)") from None

    target, problems = cache_dir() / file.path, []
    for url in file.urls:
        try:
            if not file.archive_sha256:
                _download(pooch, url, file.sha256, target)
                return target
            archive = cache_dir() / "archives" / url.rsplit("/", 1)[1]
            _download(pooch, url, file.archive_sha256, archive)
            with zipfile.ZipFile(archive) as opened, atomic_path(target) as temporary:
                temporary.write_bytes(opened.read(file.path))
            return target
        except Exception as error:  # whatever a server or a network can do: try the next one
            problems.append(f"  {url}: {type(error).__name__}: {str(error)[:300]}")
    raise OSError(f"{file.path} could not be fetched:\n" + "\n".join(problems or ["  no address"]))


def _download(pooch, url: str, sha256: str | None, target: Path) -> None:
    """To a temporary file beside ``target``, which takes its place once the hash is right."""
    pooch.retrieve(
        url,
        known_hash=sha256 and f"sha256:{sha256}",
        fname=target.name,
        path=target.parent,
        downloader=pooch.HTTPDownloader(progressbar=True, timeout=30),
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- parsing -----------------------------------------------------------------------------


def _parse(
    name: str, source: Source, log: Path, titles: Path | None, item_map: Path | None
) -> Interactions:
    inter = read_interactions(log, name=name, **source.read)
    if source.sasrec_order:
        inter = _as_sasrec(inter)
    if titles is None or (source.item_map and item_map is None):
        return inter
    ids = inter.item_ids
    try:
        if item_map is not None:
            original = dict(line.split() for line in item_map.read_text().splitlines())
            ids = np.array([0, *(int(original[str(i)]) for i in inter.item_ids[1:])])
        named = _titles(source.titles, titles)
    except (KeyError, IndexError, ValueError, csv.Error) as error:
        wrong = " or ".join(str(path) for path in (item_map, titles) if path)
        warnings.warn(
            f"{wrong} is damaged ({type(error).__name__}: {error}); going on without titles. "
            "Delete it to fetch it anew.",
            stacklevel=6,
        )
        return inter
    names = np.array(["", *(named.get(str(i), str(i)) for i in ids[1:])])
    return replace(inter, item_ids=ids, item_names=names)


def _titles(titles: Titles, path: Path) -> dict[str, str]:
    # not str.splitlines, which also cuts at U+2028 or, in latin-1, at the byte 0x85
    with open(path, encoding=titles.encoding, newline="") as file:
        if titles.sep == ",":
            rows: Iterable[list[str]] = list(csv.reader(file))
        else:
            rows = [line.rstrip("\r\n").split(titles.sep) for line in file if line.strip()]
    rows = rows[int(titles.header) :]
    return {row[titles.id]: html.unescape(row[titles.title]) for row in rows if row}


def _as_sasrec(inter: Interactions) -> Interactions:
    """Filter and number raw MovieLens ratings as the SASRec authors did.

    One pass keeps the items, and the users, that have five ratings or more. The authors' script
    walked through a dictionary of users under Python 2, so users are numbered in that order, and
    items in the order in which this walk first meets them.
    """
    items, users = inter.sequences.values, inter.sequences.owner
    enough = (inter.item_counts[items] >= 5) & (inter.lengths[users] >= 5)
    inter = inter.keep_events(enough, dropped={"items below five ratings": int((~enough).sum())})
    row = {str(user): i for i, user in enumerate(inter.user_ids) if inter.lengths[i]}
    inter = inter.select_users([row[user] for user in python2_dict_order(row)])
    present, first = np.unique(inter.sequences.values, return_index=True)
    walk = present[np.argsort(first)]
    number = np.zeros(inter.num_items + 1, dtype=np.int64)
    number[walk] = np.arange(1, len(walk) + 1)
    return replace(
        inter,
        sequences=Ragged(number[inter.sequences.values], inter.sequences.offsets),
        num_items=len(walk),
        item_ids=inter.item_ids[np.append(0, walk)],
    )


def python2_dict_order(keys: Iterable[str]) -> list[str]:
    """The order in which a dictionary of 64-bit Python 2.7 yields text keys inserted in turn.

    It is the order of the slots of its hash table: open addressing with the recurrence of
    CPython's dictobject.c, fourfold growth at two thirds full.
    """

    def put(slots: list, key: str) -> None:
        code = ord(key[0]) << 7
        for letter in key:
            code = (1000003 * code ^ ord(letter)) & 0xFFFFFFFFFFFFFFFF
        slot = perturb = code ^ len(key)
        while slots[slot % len(slots)] is not None:
            slot, perturb = 5 * slot + perturb + 1, perturb >> 5
        slots[slot % len(slots)] = key

    slots: list[str | None] = [None] * 8
    for used, key in enumerate(keys, 1):
        put(slots, key)
        if 3 * used >= 2 * len(slots):
            old, size = slots, 8
            while size <= 4 * used:
                size *= 2
            slots = [None] * size
            for kept in filter(None, old):
                put(slots, kept)
    return list(filter(None, slots))


# ---- remembering -------------------------------------------------------------------------


def _remembered(path: Path, parse: Callable[[], Interactions]) -> Interactions:
    """The parsed form at ``path``; made, and made again when it is damaged, by ``parse``."""
    try:
        return _read_parsed(path)
    except OSError:
        pass  # not there, or not for us
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        warnings.warn(f"{path} is damaged ({error}) and is made anew", stacklevel=4)
    inter = parse()
    with contextlib.suppress(OSError):  # a cache that cannot be written is done without
        _write_parsed(inter, path)
    return inter


def _write_parsed(inter: Interactions, path: Path) -> None:
    arrays = {
        "values": inter.sequences.values,
        "offsets": inter.sequences.offsets,
        "num_items": inter.num_items,
        "name": inter.name,
        "dropped_names": np.array(list(inter.dropped), dtype=np.str_),
        "dropped_counts": np.array(list(inter.dropped.values()), dtype=np.int64),
    }
    for what in ("timestamps", "user_ids", "item_ids", "item_names"):
        array = getattr(inter, what)
        if array is not None:
            arrays[what] = array.astype(np.str_) if array.dtype == object else array
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _read_parsed(path: Path) -> Interactions:
    # a zip archive: each member has a checksum
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    dropped = zip(arrays.pop("dropped_names"), arrays.pop("dropped_counts"), strict=True)
    return Interactions(
        Ragged(arrays.pop("values"), arrays.pop("offsets")),
        num_items=int(arrays.pop("num_items")),
        name=str(arrays.pop("name")),
        dropped={str(reason): int(count) for reason, count in dropped},
        **arrays,
    )
