"""Slices of the dev queries: by the data set that a query came from, and by fields of its metadata.

Does not know figures, nor what is asked of a slice.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from retriever.data import QuerySet
from retriever.errors import InputError
from retriever.joining import SEPARATOR
from retriever.protocols import IntArray


class Slice(NamedTuple):
    """Some of the queries by a ``name``: their ``places`` int32 [k] among all, ascending."""

    name: str
    places: IntArray


def slices_of(ids: Sequence[str], metadata: Sequence[str], fields: Sequence[str]) -> list[Slice]:
    """Return the slices of queries: "name/" for each data set of a join, "field=value" for each value of ``fields``.

    There are data sets where every id names one. ``metadata`` is as a QuerySet has it. A query is in the slice of each
    value of a list, and in "field=null" where it does not have the field.
    """
    names = [
        [name + separator] if separator else [] for name, separator, _ in (one.partition(SEPARATOR) for one in ids)
    ]
    found = list(_grouped(names)) if all(names) else []
    known = _read(metadata) if metadata else [{}] * len(ids)
    return found + [one for field in fields for one in _grouped([_named_values(field, own) for own in known])]


def check_slices(fields: Sequence[str], queries: QuerySet | None) -> None:
    """Raise InputError for ``fields`` of [index] slices that do not part the dev ``queries``."""
    if not fields:
        return
    if queries is None:
        raise InputError(f"[index] slices = {[*fields]}: there are no dev queries to part; add dev, or take slices out")
    known = _read(queries.metadata)
    there = {field for own in known for field, value in own.items() if value is not None}
    unknown = ", ".join(repr(field) for field in fields if field not in there)
    if unknown:
        fields_there = ", ".join(sorted(there)) or "none"
        raise InputError(f"[index] slices: no dev query has {unknown} in its metadata; there are: {fields_there}")
    for name, own in zip(queries.ids, known, strict=True):
        for field in fields:
            if any(isinstance(value, dict | list) for value in _values(field, own)):
                raise InputError(f"[index] slices: {field!r} of query {name!r} is neither a value nor a list of values")


def _read(metadata: Sequence[str]) -> list[dict[str, Any]]:
    return [json.loads(written) if written else {} for written in metadata]


def _values(field: str, metadata: Mapping[str, Any]) -> list[Any]:
    value = metadata.get(field)
    return (value if isinstance(value, list) else [value]) or [None]


def _named_values(field: str, metadata: Mapping[str, Any]) -> list[str]:
    return [f"{field}={one if isinstance(one, str) else json.dumps(one)}" for one in _values(field, metadata)]


def _grouped(names: Sequence[Sequence[str]]) -> Iterator[Slice]:
    """Yield a slice for each of the ``names`` [q] that queries have."""
    places: dict[str, list[int]] = {}
    for place, own in enumerate(names):
        for name in dict.fromkeys(own):  # a list may say a value twice
            places.setdefault(name, []).append(place)
    for name in sorted(places):
        yield Slice(name, np.array(places[name], np.int32))
