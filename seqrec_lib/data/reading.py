"""Reading anybody's log of interactions: CSV, TSV, Parquet, or a sequence per line.

What is decided here, once:

- *Order.* A stable sort by time: rows of one user with equal timestamps keep their order in
  the file. Without timestamps the order of the file is the order in time. Rows need not be
  grouped by user.
- *Numbers.* Users and items are numbered in the order of their ids: integers by value, text
  by code point. Files whose items are already 1..n keep their numbers. Ids are integers when
  every one is written as a plain 64-bit integer ("007" is text, and so is a longer number).
- *Duplicates.* Listening to a song twice is two events, so nothing is dropped by default;
  ``duplicates="drop"`` removes rows that repeat user, item and time, and counts them.
- *Malformed rows* (a wrong number of fields, a missing id, a time that is none) are errors
  that name file and line. ``on_bad_rows="skip"`` leaves them out, counts them in
  ``inter.dropped`` and warns.
- *Content beats name.* Gzip and Parquet are recognised by their first bytes.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import os
import re
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .interactions import Interactions, Ragged

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_interactions"]

ALIASES = {  # compared in lower case, letters and digits only; the likeliest first
    "user": ("user", "userid", "uid", "reviewerid", "customer", "customerid", "visitorid"),
    "item": ("item", "itemid", "iid", "movie", "movieid", "asin", "parentasin", "product",
             "productid", "artistid", "trackid", "songid", "animeid", "businessid"),
    "timestamp": ("timestamp", "ts", "time", "unixreviewtime", "date", "datetime", "createdat"),
    "title": ("title", "itemtitle", "itemname", "movietitle"),
}  # fmt: skip
REMEDY = "Correct it, or pass on_bad_rows='skip' to leave such rows out and count them."
Column = str | int | bool | None


def read_interactions(
    path: str | os.PathLike,
    user: Column = None,
    item: Column = None,
    timestamp: Column = None,
    title: Column = None,
    *,
    layout: str | None = None,
    sep: str | None = None,
    encoding: str = "utf-8",
    duplicates: str = "keep",
    on_bad_rows: str = "raise",
    name: str | None = None,
) -> Interactions:
    """Read a log of interactions from a file; gzip is undone on the way.

    Args:
        path: a text file (rows, or a sequence per line) or a Parquet file.
        user, item, timestamp, title: the columns, by name, or by number from 0 in a text file
            without a header. Those left out are guessed from the usual names, and what was
            guessed is printed. ``timestamp=False`` (or ``title=False``): do not use one.
            Times are numbers, kept as they are, or dates, turned into seconds since 1970 UTC
            (what lies less than a microsecond apart may count as one time).
        layout: "rows" (an interaction per line) or "sequences" (a user and then all their
            items in time order, per line; with ``user=False`` items only). Guessed if None.
        sep: what separates fields in a text file; guessed if None.
        encoding: of a text file.
        duplicates: "keep", or "drop" rows that repeat user, item and time.
        on_bad_rows: "raise", or "skip" malformed rows, count them and warn.
        name: of the log; the file's by default.

    Returns:
        The log, users and items numbered in the order of their ids (see the module's notes).

    Raises:
        ValueError: the file is empty, cut short, or not what it claims to be; a column cannot
            be found; a row is malformed. The message names file, line, content and remedy.
    """
    for what, value, allowed in (
        ("duplicates", duplicates, ("keep", "drop")),
        ("on_bad_rows", on_bad_rows, ("raise", "skip")),
        ("layout", layout, (None, "rows", "sequences")),
    ):
        if value not in allowed:
            raise ValueError(f"{what} must be one of {allowed}, got {value!r}")
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise ValueError(f"no encoding is called {encoding!r}; latin-1 and utf-16 are") from error
    path = Path(path)
    wanted = {"user": user, "item": item, "timestamp": timestamp, "title": title}
    if item is False or (user is False and (layout == "rows" or timestamp or title)):
        raise ValueError(
            "rows need a column of users and one of items; user=False is for files with a "
            "sequence of items per line, layout='sequences'"
        )
    given = [role for role, column in wanted.items() if column not in (None, False)]
    if layout == "sequences" and given:
        raise ValueError(f"a sequence per line has no columns, but {', '.join(given)}= is given")
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic == b"PAR1":
        if layout == "sequences" or sep is not None:
            raise ValueError(f"{path} is a Parquet file: it has rows of columns, and no sep=")
        if user is False:
            raise ValueError(f"{path} is a Parquet file: it has rows, which need a column of users")
        log = _parquet(path, wanted)
    elif path.suffix.lower() in (".parquet", ".pq"):
        raise ValueError(
            f"{path} is named like a Parquet file but is none: its first bytes are "
            f"{magic!r}, not b'PAR1'. Was the download cut short or an error page?"
        )
    else:
        log = _text(path, _text_bytes(path, encoding), wanted, layout, sep)
    return _assemble(path, log, duplicates, on_bad_rows, name or path.name.split(".")[0])


@dataclass
class _Log:
    """Columns as read, before anything is checked or numbered.

    ``locate(i)`` says where row ``i`` is and what it holds, for messages. ``num_bad`` lines
    never became a row; ``first_bad`` says where the first of them is and what is wrong.
    """

    columns: dict[str, pa.ChunkedArray]
    locate: Callable[[int], str]
    num_bad: int = 0
    first_bad: str | None = None


# ---- files to columns ------------------------------------------------------------------


def _text_bytes(path: Path, encoding: str) -> bytes:
    """The file's content as UTF-8 bytes, after the checks that need no parsing."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path} is a gzip file that is cut short or damaged ({error}). Download it again."
            ) from error
    if data[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        raise ValueError(f"{path} is a zip archive: unpack it and read the file inside")
    data = _as_utf8(path, data, encoding).removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise ValueError(f"{path} is empty: there is no interaction to read")
    if b"\0" in data[:4096]:
        raise ValueError(f"{path} is not text: it holds zero bytes (UTF-16? Then pass encoding=)")
    if data[:256].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(
            f"{path} is a web page, not data (it starts {data.lstrip()[:40]!r}): "
            "the server answered with an error page. Download the file again."
        )
    return data


def _as_utf8(path: Path, data: bytes, encoding: str) -> bytes:
    decoder, piece = codecs.getincrementaldecoder(encoding)(), 1 << 24
    same, recoded = codecs.lookup(encoding).name == "utf-8", []
    for start in range(0, len(data), piece):  # by pieces: as text it could take four times as much
        begin = start - len(decoder.getstate()[0])  # of what is decoded now
        try:
            text = decoder.decode(data[start : start + piece], final=start + piece >= len(data))
        except UnicodeDecodeError as error:
            number = data[: begin + error.start].count(b"\n")
            raise ValueError(
                f"{path}, line {number + 1} is not {encoding}: {data.splitlines()[number][:80]!r}. "
                "Pass another encoding=, such as 'latin-1'."
            ) from error
        recoded += [] if same else [text.encode()]
    return data if same else b"".join(recoded)


def _lines(data: bytes, quoted: bool = False) -> list[tuple[int, str]]:
    """The non-empty lines with their numbers, for error messages; quotes may hold line breaks."""
    lines = [line.decode(errors="replace") for line in data.splitlines()]
    if not (quoted and b'"' in data):
        return [(n, line) for n, line in enumerate(lines, 1) if line]
    found, start, reader = [], 0, csv.reader(lines)
    for fields in reader:
        if fields:
            found.append((start + 1, "\n".join(lines[start : reader.line_num])))
        start = reader.line_num
    return found


def _fields(line: str, sep: str) -> list[str]:
    return [part.strip().strip('"') for part in (line.split(sep) if sep != " " else line.split())]


def _text(path: Path, data: bytes, wanted: dict, layout: str | None, sep: str | None) -> _Log:
    head = [line for _, line in _lines(data[: 1 << 16])[:100]]
    if len(data) > 1 << 16 and len(head) > 1:
        head.pop()  # may be cut
    if sep is None:
        sep = next((s for s in ("\t", "::", ",", ";", "|") if s in head[0]), " ")
    first = _fields(head[0], sep)
    named = any(isinstance(column, str) for column in wanted.values())
    numbered = any(type(column) is int for column in wanted.values())
    numbers = all(re.fullmatch(r"-?\d+", field) for field in first)
    header = named or not (numbered or numbers)
    digits = any(re.fullmatch(r"-?[\d.]+", field) for field in first)  # then it is data
    known = any(_key(field) in keys for keys in ALIASES.values() for field in first)
    if numbered and known and not digits:
        header = True
        print(f"{path.name}: the first line names the columns (guessed)")
    guessable = numbers and not (named or numbered)
    if layout is None and wanted["user"] is not False:
        ragged = sep == " " and len({len(_fields(line, sep)) for line in head}) > 1
        layout = "sequences" if guessable and ragged else "rows"
        if layout == "sequences":
            print(f"{path.name}: a user's whole sequence per line (guessed; else layout='rows')")
    if layout != "rows":
        return _sequences(path, data, sep, wanted["user"] is not False)
    names = first if header and not numbered else [str(n) for n in range(len(first))]
    if guessable and len(first) == 2:
        wanted = {**wanted, "user": 0, "item": 1}
        print(f"{path.name}: no header and two columns, taken as user and item (guessed)")
    return _rows(path, data, sep, names, header, _choose(path, names, wanted))


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _choose(path: Path, names: list[str], wanted: dict[str, Column]) -> dict[str, str]:
    """The column of each role, as given or guessed; what was guessed is printed."""
    chosen, guessed = {}, []
    for role, column in wanted.items():
        if column is False:
            continue
        if column is None:
            by_key = {_key(name): name for name in reversed(names)}
            column = next((by_key[key] for key in ALIASES[role] if key in by_key), None)
            if column is None and role in ("timestamp", "title"):
                continue
            guessed.append(f"{role} = {column!r}")
        if str(column) not in names:
            why = "could be guessed" if column is None else f"is called {column!r}"
            raise ValueError(
                f"{path}: no column {why} among {names}. Pass {role}= with a column's name, or its "
                "number from 0 in a text file without a header; for a user's whole sequence per "
                "line, layout='sequences'."
            )
        column = str(column)
        chosen[role] = column
    if guessed:
        clock = "" if "timestamp" in chosen else "; no times: rows are taken to be in time order"
        print(f"{path.name}: {', '.join(guessed)} (guessed{clock})")
    return chosen


def _rows(path: Path, data: bytes, sep: str, names: list[str], header: bool, chosen: dict) -> _Log:
    import pyarrow as pa
    from pyarrow import csv as arrow

    if sep == " ":
        data = re.sub(rb"[ \t]+", b" ", data) if b"  " in data or b"\t" in data else data
        data = re.sub(rb"(?m)^ | (?=\r?$)", b"", data)
    # Where a tab separates, a quote within a field is a character; R quotes whole lines of fields.
    quoted = sep in (",", ";") or (sep == "\t" and data.lstrip().startswith(b'"'))
    original, mark = data, sep
    if len(sep) > 1:  # the parser knows one-character separators only
        data, mark = data.replace(sep.encode(), b"\x1f"), "\x1f"
    bad = []

    def remember(row):
        bad.append(row)
        return "skip"

    columns = [str(n) for n in range(len(names))]
    column_of = {role: columns[names.index(column)] for role, column in chosen.items()}
    id_type = pa.dictionary(pa.int32(), pa.string())
    kind = {role: id_type if role in ("user", "item") else pa.string() for role in chosen}
    try:
        table = arrow.read_csv(
            pa.BufferReader(data.lstrip(b"\r\n")),
            # one thread: only then does the parser know a bad row's number
            read_options=arrow.ReadOptions(
                use_threads=False, column_names=columns, skip_rows=int(header), block_size=1 << 24
            ),
            parse_options=arrow.ParseOptions(
                delimiter=mark,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted and b'"' in data,
                invalid_row_handler=remember,
            ),
            convert_options=arrow.ConvertOptions(
                include_columns=list(dict.fromkeys(column_of.values())),
                column_types={column_of[role]: kind[role] for role in chosen},
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            raise ValueError(f"{path} holds no interaction") from error
        raise ValueError(f"{path} cannot be read as rows of fields: {error}") from error

    def place(number: int) -> str:
        """Where the ``number``-th non-empty line (from 1, header included) is; what it says."""
        try:
            line, content = _lines(original, quoted)[number - 1]
        except (csv.Error, IndexError):  # quotes in such disorder that lines cannot be counted
            return f"{path}, non-empty line {number}"
        return f"{path}, line {line}: {content[:120]!r}"

    def locate(row: int) -> str:
        numbers = np.arange(1 + header, len(table) + len(bad) + 1 + header)
        return place(np.setdiff1d(numbers, [row.number for row in bad])[row])

    log = _Log({role: table[column_of[role]] for role in chosen}, locate, len(bad))
    if bad:
        fields = f"{bad[0].actual_columns} fields where {bad[0].expected_columns} were expected"
        log.first_bad = f"{place(bad[0].number)}: {fields}"
    return log


def _sequences(path: Path, data: bytes, sep: str, with_user: bool) -> _Log:
    import pyarrow as pa
    import pyarrow.compute as pc

    lines = _lines(data)
    text = pa.array([line for line in data.splitlines() if line], pa.string())
    text = pc.utf8_trim_whitespace(text)
    parts = pc.utf8_split_whitespace(text) if sep == " " else pc.split_pattern(text, sep)
    lengths = pc.list_value_length(parts).to_numpy()
    values = pc.list_flatten(parts)
    ragged = Ragged.from_lengths(np.empty(lengths.sum(), np.int8), lengths)
    is_item = ragged.position >= int(with_user)
    user = np.arange(1, len(lines) + 1)
    if with_user:
        user = values.take(pa.array(ragged.offsets[:-1])).dictionary_encode()
    of_line = ragged.owner[is_item]
    columns = {
        "user": pa.chunked_array([pa.array(user).take(pa.array(of_line))]),
        "item": pa.chunked_array([values.filter(pa.array(is_item))]),
    }

    def place(line: int) -> str:
        return f"{path}, line {lines[line][0]}: {lines[line][1][:120]!r}"

    log = _Log(columns, lambda row: place(of_line[row]))
    if (alone := np.flatnonzero(lengths <= int(with_user))).size:
        log.num_bad, log.first_bad = len(alone), f"{place(alone[0])}: a user without any item"
    return log


def _parquet(path: Path, wanted: dict[str, Column]) -> _Log:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        chosen = _choose(path, schema.names, wanted)
        for role, column in chosen.items():
            kind = schema.field(column).type
            if pa.types.is_nested(kind) or pa.types.is_binary(kind):
                raise ValueError(f"{path}: column {column!r} holds {kind}, which is no {role}")
        # ids as dictionaries: an int32 per row and each id once
        table = pq.read_table(
            path,
            columns=list(dict.fromkeys(chosen.values())),
            memory_map=True,
            read_dictionary=[chosen["user"], chosen["item"]],
        )
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is a Parquet file that is cut short or damaged ({error}). Download it again."
        ) from error
    return _Log(
        {role: table[column] for role, column in chosen.items()},
        lambda row: (
            f"{path}, row {row} (from 0): "
            f"{ {c: table[c][int(row)].as_py() for c in table.column_names} }"
        ),
    )


# ---- columns to Interactions -----------------------------------------------------------


def _assemble(path: Path, log: _Log, duplicates: str, on_bad_rows: str, name: str) -> Interactions:
    """Check the rows, number users and items, and put each user's events in time order."""
    user, user_ids = _encoded(log.columns.pop("user"))
    item, item_ids = _encoded(log.columns.pop("item"))
    time = _seconds(log.columns.pop("timestamp")) if "timestamp" in log.columns else None
    title = log.columns.pop("title", None)

    good = _good_rows(path, log, user, item, time, on_bad_rows)
    num_bad = log.num_bad + int((~good).sum())
    dropped = {"malformed rows": num_bad} if num_bad else {}
    if not good.any():
        raise ValueError(f"{path} holds no {'well-formed ' if num_bad else ''}interaction")
    if not good.all():
        user, item = user[good], item[good]
        time = None if time is None else time[good]
    if time is not None and time.dtype.kind == "f" and np.all(time == np.floor(time)):
        time = time.astype(np.int64) if np.all(np.abs(time) < 2**53) else time
    if title is not None:
        title = title.cast("string").combine_chunks().filter(good)

    if duplicates == "drop":
        import pandas as pd

        columns = {"user": user, "item": item} | ({} if time is None else {"time": time})
        first = ~pd.DataFrame(columns, copy=False).duplicated().to_numpy()
        dropped["duplicate rows"] = int((~first).sum())
        user, item = user[first], item[first]
        time = None if time is None else time[first]
        title = None if title is None else title.filter(first)

    user, user_ids = _numbered(user, user_ids)
    item, item_ids = _numbered(item, item_ids)
    names = None if title is None else _first_titles(item, title, item_ids)
    order = _by_user_and_time(user, time)
    return Interactions(
        Ragged.from_lengths(item[order].astype(np.int64) + 1, np.bincount(user)),
        num_items=len(item_ids),
        timestamps=None if time is None else time[order],
        user_ids=user_ids,
        item_ids=_with_padding(item_ids),
        item_names=names,
        name=name,
        dropped=dropped,
    )


def _good_rows(path: Path, log: _Log, user, item, time, on_bad_rows: str) -> np.ndarray:
    """(N,) which rows are well formed; those that are not are an error, or reported."""
    problems = {"no user": user < 0, "no item": item < 0}
    if time is not None:
        problems["a time that is neither a number nor a date"] = ~np.isfinite(time)
    bad = np.logical_or.reduce(list(problems.values()))
    num_bad, first = log.num_bad + int(bad.sum()), log.first_bad
    if not num_bad:
        return ~bad
    if first is None:
        row = int(np.argmax(bad))
        first = f"{log.locate(row)}: {next(what for what, mask in problems.items() if mask[row])}"
    if on_bad_rows == "raise":
        more = f" ({num_bad - 1} more rows are malformed.)" if num_bad > 1 else ""
        raise ValueError(f"{first}. {REMEDY}{more}")
    total = len(bad) + log.num_bad
    warnings.warn(f"{path}: skipped {num_bad} of {total} rows as malformed; {first}", stacklevel=4)
    return ~bad


def _encoded(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(codes (N,) int32, -1 where the id is missing; the id of each code, integers or text)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries()
    ids = column.chunk(0).dictionary if column.num_chunks else pa.array([], pa.int64())
    codes = [np.asarray(chunk.indices.fill_null(-1), np.int32) for chunk in column.chunks]
    codes = np.concatenate([np.empty(0, np.int32), *codes])
    if pa.types.is_floating(ids.type) and pc.all(pc.equal(pc.floor(ids), ids)).as_py():
        ids = ids.cast(pa.int64())  # whole numbers that met a missing value somewhere
    if pa.types.is_integer(ids.type):
        return codes, ids.to_numpy()
    ids = np.array([text.strip() for text in ids.cast(pa.string()).to_pylist()], dtype=object)
    return np.where(np.append(ids == "", False)[codes], np.int32(-1), codes), ids


def _numbered(codes: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids in their order, those that have rows, and each row's place among them."""
    used = np.bincount(codes, minlength=len(ids)) > 0
    kept = ids[used]
    if kept.dtype == object and all(re.fullmatch(r"0|-?[1-9][0-9]*", id_) for id_ in kept):
        with contextlib.suppress(OverflowError):  # longer than 64 bits: they stay text
            kept = kept.astype(np.int64)
    ordered, place = np.unique(kept, return_inverse=True)
    rank = np.zeros(len(ids), dtype=np.int32)
    rank[used] = place
    return rank[codes], ordered


def _seconds(column: pa.ChunkedArray) -> np.ndarray:
    """Times as numbers, integers or floats; NaN where there is none."""
    import pandas as pd
    import pyarrow as pa

    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(column.type):
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
        ticks = column.cast(pa.int64())
        if not ticks.null_count and not np.any(ticks.to_numpy() % per_second):
            return ticks.to_numpy() // per_second
        return ticks.to_pandas().to_numpy(np.float64, na_value=np.nan) / per_second
    for kind in (pa.int64(), pa.float64()):  # the fast ways, for columns without a flaw
        if not column.null_count:
            with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
                return column.cast(kind).to_numpy()
    values = column.to_pandas()
    times = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    if np.isnan(times).all():  # not one number: dates
        dates = pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601")
        times = ((dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)).to_numpy(np.float64)
    return times


def _by_user_and_time(user: np.ndarray, time: np.ndarray | None) -> np.ndarray | slice:
    """The order of rows: by user, then by time, then as they came."""
    order = None
    if time is not None and np.any(np.diff(time) < 0):
        order = np.argsort(time, kind="stable")
        user = user[order]
    if np.any(np.diff(user) < 0):
        by_user = np.argsort(user, kind="stable")
        order = by_user if order is None else order[by_user]
    return slice(None) if order is None else order


def _with_padding(ids: np.ndarray) -> np.ndarray:
    padding = np.array([0 if ids.dtype.kind in "iu" else ""], dtype=ids.dtype)
    return np.concatenate([padding, ids])


def _first_titles(item: np.ndarray, title: pa.Array, item_ids: np.ndarray) -> np.ndarray:
    """(num_items + 1,) each item's first title in the file, or its id where it has none."""
    titled = np.flatnonzero(title.fill_null("").to_numpy(zero_copy_only=False) != "")
    items, first = np.unique(item[titled], return_index=True)
    names = np.array(["", *map(str, item_ids)], dtype=object)
    names[items + 1] = title.take(titled[first]).to_pylist()
    return names
