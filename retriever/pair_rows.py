"""Finds a query, its positives and its negatives in each row of a table.

Does not know how tables are stored nor what becomes of the pairs.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from retriever.errors import InputError
from retriever.tables import Row, Table


@dataclass(frozen=True)
class Columns:
    """The columns to read, by default those of sentence-transformers' triplets; None leaves a thing out.

    ``positive`` and ``negative`` hold a text or a list of texts, and ``negative`` stands for ``negative_1``,
    ``negative_2`` … as well. ``passage_id`` and ``title`` belong to the positives and come as many as these.
    """

    query: str = "anchor"
    positive: str = "positive"
    negative: str | None = "negative"
    query_id: str | None = None
    passage_id: str | None = None
    title: str | None = None


LAYOUTS = tuple(
    Columns(query, positive, negative)
    for query, positive, given in (
        ("anchor", "positive", "negative"),
        ("query", "positive", "negative"),
        ("query", "pos", "neg"),
    )
    for negative in (given, None)
)
"""What is tried in turn where no columns are named: sentence-transformers' names and FlagEmbedding's."""


@dataclass(frozen=True)
class PairRow:
    """One row: a query, its positives as (id, title, text) and its negatives; an id is None where no column has it."""

    place: str
    query_id: str | None
    query: str
    positives: Sequence[tuple[str | None, str, str]]
    negatives: Sequence[str]


def fitting_columns(table: Table, columns: Columns | None) -> Columns:
    """Return ``columns``, or if None the first of LAYOUTS whose columns the table has.

    Raises InputError, naming the columns there are, if one is not there.
    """
    for layout in LAYOUTS if columns is None else [columns]:
        absent = [name for name in _singles(layout) if name not in table.columns]
        if layout.negative is not None and not _negatives(table, layout):
            absent.append(layout.negative)
        if not absent:
            return layout
    there = ", ".join(table.columns)
    if columns is None:
        raise InputError(f"{table.name}: name the columns of query and positive; there are {there}")
    raise InputError(f"{table.name}: no column {', '.join(map(repr, absent))}; there are {there}")


def read_pair_rows(table: Table, columns: Columns, dropped: Counter[str]) -> Iterator[PairRow]:
    """Yield the rows that have a query and a positive; the others, and empty texts in lists, are counted.

    Texts are stripped. Raises InputError naming the row for a value of another type, an id that is absent or that
    a qrels file cannot hold, and for ids or titles that are not as many as the positives.
    """
    negatives = _negatives(table, columns)
    for place, row in table.rows([*_singles(columns), *negatives]):
        query = text_in(place, columns.query, row.get(columns.query))
        positives = _positives(place, row, columns, dropped)
        if not (query and positives):
            dropped["row without a positive" if query else "row without a query"] += 1
            continue
        query_id = None if columns.query_id is None else id_in(place, columns.query_id, row.get(columns.query_id))
        found = [text for name in negatives for text in _texts(place, name, row.get(name), dropped) if text]
        yield PairRow(place, query_id, query, positives, found)


def _singles(columns: Columns) -> list[str]:
    named = (columns.query, columns.positive, columns.query_id, columns.passage_id, columns.title)
    return [name for name in named if name is not None]


def _negatives(table: Table, columns: Columns) -> list[str]:
    if columns.negative is None:
        return []
    pattern = re.compile(rf"{re.escape(columns.negative)}(_\d+)?")
    return [name for name in table.columns if pattern.fullmatch(name)]


def _positives(place: str, row: Row, columns: Columns, dropped: Counter[str]) -> list[tuple[str | None, str, str]]:
    texts = _texts(place, columns.positive, row.get(columns.positive), dropped)
    ids = _beside(place, row, columns.passage_id, len(texts))
    titles = _beside(place, row, columns.title, len(texts))
    return [
        (
            None if columns.passage_id is None else id_in(place, columns.passage_id, passage_id),
            "" if columns.title is None else text_in(place, columns.title, title),
            text,
        )
        for text, passage_id, title in zip(texts, ids, titles, strict=True)
        if text
    ]


def _texts(place: str, column: str, value: Any, dropped: Counter[str]) -> list[str]:
    texts = [text_in(place, column, each) for each in _listed(value)]
    if isinstance(value, list):
        dropped["empty text in a list"] += texts.count("")
    return texts


def _beside(place: str, row: Row, column: str | None, count: int) -> list[Any]:
    if column is None:
        return [None] * count
    values = _listed(row.get(column))
    if len(values) != count:
        raise InputError(f"{place}: column {column!r} has {len(values)} values for {count} positives; give one each")
    return values


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def text_in(place: str, column: str, value: Any) -> str:
    """Return ``value``, that ``column`` has at ``place``, stripped, "" for None. Raises InputError if it is no text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{place}: column {column!r} holds a value of type {type(value).__name__}, no text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: column {column!r} is not valid Unicode ({error.reason}); mend it") from error
    return value.strip()


def id_in(place: str, column: str, value: Any) -> str:
    """Return the id ``value``, that ``column`` has at ``place``. Raises InputError for one that qrels cannot hold."""
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else text_in(place, column, value)
    if not name or any(character in name for character in "\t\r\n"):
        raise InputError(f"{place}: column {column!r} holds the id {name!r}; write one line without tabs")
    return name
