"""Filters on the fields of passages: which rows of a corpus have the values that are asked for.

Does not know queries, vectors or indexes.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.data import Corpus
from retriever.durable import sha256_json
from retriever.errors import InputError
from retriever.protocols import BoolArray

Scalar = str | int | float | bool | None
KEPT_FILTERS = 64
BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "gt": lambda value, bound: bool(value > bound),
    "gte": lambda value, bound: bool(value >= bound),
    "lt": lambda value, bound: bool(value < bound),
    "lte": lambda value, bound: bool(value <= bound),
}


@dataclass(frozen=True)
class _Column:
    """One field: ``codes`` int32 [rows] are positions in ``values``; position 0 is None, for passages without it."""

    codes: NDArray[np.int32]
    values: Sequence[Any]


class PassageFields:
    """The fields of a corpus, by which passages can be filtered: its metadata. For many threads.

    The fields are read once, when first asked for; afterwards they take 4 bytes a passage and field, and each value
    once. The rows of the latest filters are kept.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._columns: dict[str, _Column] | None = None
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
            if key not in self._kept:
                self._kept[key] = self._found(conditions)
                self._kept[key].flags.writeable = False
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT_FILTERS:
                self._kept.popitem(last=False)
            return self._kept[key]

    def _found(self, conditions: Mapping[str, Any]) -> BoolArray:
        if self._columns is None:
            self._columns = _columns(self._corpus)
        allowed = np.ones(len(self._corpus), np.bool_)
        for field, condition in conditions.items():
            if field not in self._columns:
                there = ", ".join(sorted(self._columns)) or "none"
                raise InputError(f"filter.{field}: no passage has this field; there are: {there}")
            column = self._columns[field]
            allowed &= np.array([meets(value, condition) for value in column.values], np.bool_)[column.codes]
        return allowed


def _columns(corpus: Corpus) -> dict[str, _Column]:
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
    return {field: _Column(codes[field], values[field]) for field in codes}


def meets(value: Any, condition: Any) -> bool:
    """Tell whether the ``value`` of a field meets ``condition``, as PassageFields.allowed has it."""
    if isinstance(value, list):
        return any(meets(one, condition) for one in value)
    if isinstance(condition, list):
        return any(meets(value, one) for one in condition)
    if isinstance(condition, Mapping):
        return all(_kind(value) == _kind(bound) and BOUNDS[name](value, bound) for name, bound in condition.items())
    return _kind(value) == _kind(condition) and bool(value == condition)


def _kind(value: Any) -> str:
    """Name the JSON type of ``value``: true is not 1, and 1 is 1.0."""
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else type(value).__name__
