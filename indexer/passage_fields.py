"""Filters on the fields of passages: which rows of a corpus have the values that are asked for.

Does not know queries, vectors or indexes.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.data import Corpus
from retriever.durable import sha256_json
from retriever.errors import InputError
from retriever.protocols import BoolArray

KEPT_FILTERS = 64
KEPT_BYTES = 64 << 20
"""Of all filters that are kept: one takes a byte a passage."""
BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "gt": lambda value, bound: bool(value > bound),
    "gte": lambda value, bound: bool(value >= bound),
    "lt": lambda value, bound: bool(value < bound),
    "lte": lambda value, bound: bool(value <= bound),
}


class Column:
    """One field: ``codes`` int32 [rows] are positions in ``values``; position 0 is None, for passages without it."""

    def __init__(self, codes: NDArray[np.int32], values: Sequence[Any]) -> None:
        self.codes = codes
        self._values = values

    @cached_property
    def _places(self) -> dict[tuple[str, Any], list[int]]:
        places: dict[tuple[str, Any], list[int]] = {}
        for place, value in enumerate(self._values):
            for one in _elements(value):
                places.setdefault(_equal(one), []).append(place)
        return places

    def meeting(self, condition: Any) -> BoolArray:
        """Return bool [values]: which meet ``condition``, as PassageFields.allowed has it."""
        found = np.zeros(len(self._values), np.bool_)
        for one in condition if isinstance(condition, list) else [condition]:
            if isinstance(one, Mapping):
                found |= np.array([within(value, one) for value in self._values], np.bool_)
            else:
                found[self._places.get(_equal(one), [])] = True
        return found


class PassageFields:
    """The fields of a corpus, by which passages can be filtered: its metadata. For many threads.

    The fields are read once, when first asked for; afterwards they take 4 bytes a passage and field, and each value
    once; a field that was asked for a value takes some 250 bytes more for each that it has. The rows of the latest
    filters are kept, at most KEPT_BYTES of them.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._columns: dict[str, Column] | None = None
        self._kept: OrderedDict[str, BoolArray] = OrderedDict()
        self._turn = Lock()

    def allowed(self, conditions: Mapping[str, Any]) -> BoolArray:
        """Return read-only bool [rows]: which passages meet every condition.

        A condition is a value (equal), a list of values (one of them) or a mapping of gt, gte, lt, lte to bounds of the
        same type, number or string. A field that holds a list meets it if one of its values does; None is met where the
        field is absent. Raises InputError for a field that no passage has.
        """
        key = sha256_json(conditions)
        with self._turn:
            if self._columns is None:
                self._columns = _columns(self._corpus)
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        allowed = _found(self._columns, len(self._corpus), conditions)  # meanwhile others may ask
        allowed.flags.writeable = False
        with self._turn:
            self._kept[key] = allowed
            while len(self._kept) > min(KEPT_FILTERS, max(1, KEPT_BYTES // len(self._corpus))):
                self._kept.popitem(last=False)
        return allowed


def _found(columns: Mapping[str, Column], rows: int, conditions: Mapping[str, Any]) -> BoolArray:
    allowed = np.ones(rows, np.bool_)
    for field, condition in conditions.items():
        if field not in columns:
            there = ", ".join(sorted(columns)) or "none"
            raise InputError(f"filter.{field}: no passage has this field; there are: {there}")
        allowed &= columns[field].meeting(condition)[columns[field].codes]
    return allowed


def _columns(corpus: Corpus) -> dict[str, Column]:
    codes: dict[str, NDArray[np.int32]] = {}
    known: dict[str, dict[str, int]] = {}
    values: dict[str, list[Any]] = {}
    for row, fields in enumerate(corpus.metadata()):
        for field, value in fields.items():
            if field not in codes:
                codes[field], known[field], values[field] = np.zeros(len(corpus), np.int32), {}, [None]
            if value is not None:
                code = known[field].setdefault(sha256_json(value), len(values[field]))
                if code == len(values[field]):
                    values[field].append(value)
                codes[field][row] = code
    return {field: Column(codes[field], values[field]) for field in codes}


def _elements(value: Any) -> list[Any]:
    """Return ``value``, or what stands in it if it is a list, however deep."""
    return [inner for one in value for inner in _elements(one)] if isinstance(value, list) else [value]


def within(value: Any, bounds: Mapping[str, Any]) -> bool:
    """Tell whether ``value``, or one that stands in it if it is a list, keeps all ``bounds``."""
    return any(
        all(_kind(one) == _kind(bound) and BOUNDS[name](one, bound) for name, bound in bounds.items())
        for one in _elements(value)
    )


def _equal(value: Any) -> tuple[str, Any]:
    """Return what two values have in common if they are equal as JSON."""
    return _kind(value), sha256_json(value) if isinstance(value, dict) else value


def _kind(value: Any) -> str:
    """Name the JSON type of ``value``: true is not 1, and 1 is 1.0."""
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else type(value).__name__
