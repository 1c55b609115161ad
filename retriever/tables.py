"""Rows of a table, one by one, from Parquet, JSON and CSV files or from a data set of the Hugging Face hub.

Does not know what the columns mean.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from retriever.beir import read_json_lines
from retriever.errors import InputError

Row = Mapping[str, Any]
Rows = Iterator[tuple[str, Row]]
BATCH_ROWS = 1024
ROWS_FOR_COLUMNS = 1000
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
UNREADABLE = (OSError, EOFError, UnicodeDecodeError, zlib.error)


@dataclass(frozen=True)
class Table:
    """A table: ``name`` for messages, its ``columns``, and ``rows`` to read it from its start.

    ``rows`` takes the columns that are wanted, none for all, and yields (place, row); the place is file and line,
    or row number. A row may have other columns too, and may lack one.
    """

    name: str
    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Rows]


def open_table(source: str, split: str, subset: str | None = None) -> Table:
    """Open one split of ``source``: a file, a folder of files, or else the id of a data set on the hub.

    A file is its split "train" alone. In a folder, the files of a split are ``split.EXT``, ``split-….EXT`` and
    ``split/….EXT``, where EXT is parquet, or jsonl, json or csv, these also gzipped. ``.json`` holds one object a
    line or one array; an array is held in memory, all else is read row by row. JSON and CSV have the columns of
    the first 1,000 rows.

    Raises InputError for a source or split that is not there or cannot be read, and for one without rows.
    """
    path = Path(source)
    if path.exists() and subset is None:
        files = _files(path, split)

        def rows(columns: Sequence[str]) -> Rows:
            for file in files:
                yield from _reader(file)(file, columns)

        return _table(source, rows, ROWS_FOR_COLUMNS)
    if path.exists():
        raise InputError(f"{source}: a subset ({subset!r}) is for the hub; here, name the folder that holds it")
    if not HUB_ID.fullmatch(source) or source.endswith(tuple(READERS)):
        raise InputError(f"{source}: no such file or folder")
    return open_hub_table(source, split, subset)


def open_hub_table(source: str, split: str, subset: str | None = None) -> Table:
    """Open one split of a data set on the hub, streamed. Raises InputError if the hub does not give it."""
    from datasets import load_dataset  # takes a second, and only this function needs it

    name = f"{source}[{split}]"
    try:
        stream = load_dataset(source, subset, split=split, streaming=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: no such file or folder, and the hub does not give it either ({error})") from error

    def rows(columns: Sequence[str]) -> Rows:
        number = 0
        try:
            for number, row in enumerate(stream.select_columns(list(columns)) if columns else stream, 1):
                yield f"{name} row {number}", row
        except (OSError, ValueError) as error:
            raise InputError(f"{name}: cannot be read after row {number} ({error}); try again") from error

    return _table(name, rows, 1)


def _table(name: str, rows: Callable[[Sequence[str]], Rows], looked_at: int) -> Table:
    columns = dict.fromkeys(column for _, row in islice(rows(()), looked_at) for column in row)
    if not columns:
        raise InputError(f"{name}: no rows; a table needs at least one")
    return Table(name, tuple(columns), rows)


def _files(source: Path, split: str) -> list[Path]:
    if source.is_file():
        if split != "train":
            raise InputError(f"{source}: one file has no split {split!r}; give a folder, or a fraction to carve off")
        _reader(source)
        return [source]
    named = re.compile(rf"{re.escape(split)}(-[^/]*|/.*)?({'|'.join(map(re.escape, READERS))})")
    known = {path.relative_to(source).as_posix(): path for path in source.rglob("*") if path.is_file()}
    files = [known[name] for name in sorted(known) if named.fullmatch(name)]
    if not files:
        there = ", ".join(sorted(known)[:10]) or "nothing"
        raise InputError(f"{source}: no file of a split {split!r} ({split}.jsonl, {split}-0.parquet …), but {there}")
    return files


def _reader(path: Path) -> Callable[[Path, Sequence[str]], Rows]:
    for suffix, read in READERS.items():
        if path.name.endswith(suffix):
            return read
    raise InputError(f"{path}: unknown kind of file; there are {', '.join(READERS)}")


def _parquet_rows(path: Path, columns: Sequence[str]) -> Rows:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns) or None):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read after row {number} ({error})") from error


def _json_rows(path: Path, columns: Sequence[str]) -> Rows:
    if not _is_array(path):
        yield from ((f"{path}:{number}", record) for number, record in read_json_lines(path))
        return
    try:
        with _text(path) as file:
            records = json.load(file)
    except (*UNREADABLE, ValueError) as error:
        raise InputError(f"{path}: malformed JSON ({error}); mend it or write one object a line") from error
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise InputError(f"{path} row {number}: not a JSON object; write an array of objects")
        yield f"{path} row {number}", record


def _is_array(path: Path) -> bool:
    try:
        with _text(path) as file:
            while (character := file.read(1)).isspace():
                pass
            return character == "["
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read ({error}); check that the file is whole UTF-8 text") from error


def _csv_rows(path: Path, columns: Sequence[str]) -> Rows:
    try:
        with _text(path) as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row:
                    raise InputError(f"{path}:{reader.line_num}: more fields than the header; put quotes round texts")
                yield f"{path}:{reader.line_num}", row
    except (*UNREADABLE, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); check that it is whole, in UTF-8 and quoted") from error


def _text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


_LINES = {".jsonl": _json_rows, ".json": _json_rows, ".csv": _csv_rows}
READERS = {".parquet": _parquet_rows, **_LINES, **{f"{suffix}.gz": read for suffix, read in _LINES.items()}}
