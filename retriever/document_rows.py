"""Finds a document, with id, title and metadata, in each row of a table.

Does not know how tables are stored nor what becomes of the documents.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from retriever.errors import InputError
from retriever.pair_rows import id_in, text_in
from retriever.tables import Table

TEXTS = ("text", "contents", "content", "passage", "document", "body")
IDS = ("_id", "id", "docid", "doc_id", "passage_id", "pid")
TITLES = ("title",)
"""Columns that are tried in turn where none is named."""


@dataclass(frozen=True)
class DocumentColumns:
    """The columns to read, None: guessed. Each of ``metadata`` becomes a field of the passage under its own name."""

    text: str | None = None
    id: str | None = None
    title: str | None = None
    metadata: tuple[str, ...] = ()


@dataclass(frozen=True)
class DocumentRow:
    """One row: its ``place``, the id, None where no column has it, and ``metadata`` as a JSON object or empty."""

    place: str
    id: str | None
    title: str
    text: str
    metadata: str


def read_document_rows(table: Table, columns: DocumentColumns, dropped: Counter[str]) -> Iterator[DocumentRow]:
    """Yield the rows that have a text or a title; the others are counted. Texts are stripped.

    Raises InputError, naming the columns there are, for one that is not there; naming the row, for a text of another
    type, for metadata that JSON cannot hold, and for an id that is absent or that a qrels file cannot hold.
    """
    text, name, title = (
        _found(table, columns.text, TEXTS),
        _found(table, columns.id, IDS),
        _found(table, columns.title, TITLES),
    )
    if text is None:
        raise InputError(f"{table.name}: name the column of the texts; there are {', '.join(table.columns)}")
    for column in columns.metadata:
        _found(table, column, ())
    wanted = [column for column in (text, name, title) if column is not None]
    for place, row in table.rows([*wanted, *columns.metadata]):
        found = text_in(place, text, row.get(text))
        headed = "" if title is None else text_in(place, title, row.get(title))
        if not (found or headed):
            dropped["document without a text"] += 1
            continue
        own = None if name is None else id_in(place, name, row.get(name))
        fields = {column: row[column] for column in columns.metadata if row.get(column) is not None}
        yield DocumentRow(place, own, headed, found, _as_json(place, fields))


def _found(table: Table, named: str | None, guesses: tuple[str, ...]) -> str | None:
    if named is None:
        return next((guess for guess in guesses if guess in table.columns), None)
    if named not in table.columns:
        raise InputError(f"{table.name}: no column {named!r}; there are {', '.join(table.columns)}")
    return named


def _as_json(place: str, fields: dict[str, Any]) -> str:
    try:
        written = json.dumps(fields, sort_keys=True, ensure_ascii=False, allow_nan=False) if fields else ""
        written.encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"{place}: metadata of columns {', '.join(fields)} is no JSON ({error})") from error
    return written
