from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import indexer.passage_fields
from indexer.passage_fields import KEPT_FILTERS, Column, PassageFields
from retriever.data import Corpus
from retriever.errors import InputError
from retriever.ingest import ingest_corpus
from retriever.store import Store
from tests.stand_ins import write_json_lines

scalars: st.SearchStrategy[Any] = st.sampled_from(["", "a", "b", 0, 1, 1.0, 2.5, True, False])
values = scalars | st.none() | st.lists(scalars, max_size=3) | st.just({"nested": 1})
bounds = st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), st.sampled_from(["a", "b", 1, 2.5]), min_size=1)
conditions = scalars | st.none() | st.lists(scalars | st.none(), min_size=1, max_size=3) | bounds
records = st.lists(st.dictionaries(st.sampled_from("xyz"), values), min_size=1, max_size=12)


def corpus_of(folder: Path, metadata: list[dict[str, Any]]) -> Corpus:
    folder.mkdir(parents=True)
    lines = [{"_id": str(row), "text": "t", "metadata": fields} for row, fields in enumerate(metadata)]
    write_json_lines(folder / "corpus.jsonl", lines)
    return Corpus(ingest_corpus(Store(folder / "store", create=True), folder))


def expected(value: Any, condition: Any) -> bool:
    """The definition, word for word: JSON types apart, except that 1 is 1.0."""
    if isinstance(value, list):
        return any(expected(one, condition) for one in value)
    if isinstance(condition, list):
        return any(expected(value, one) for one in condition)
    numbers = (int, float)
    alike = type(value) is type(condition) or (
        (isinstance(value, numbers) and isinstance(condition, numbers))
        and not isinstance(value, bool)
        and not isinstance(condition, bool)
    )
    if isinstance(condition, dict):
        if isinstance(value, bool) or not isinstance(value, (*numbers, str)):
            return False
        if any(isinstance(bound, str) != isinstance(value, str) for bound in condition.values()):
            return False
        met = {"gt": value.__gt__, "gte": value.__ge__, "lt": value.__lt__, "lte": value.__le__}
        if isinstance(value, int):
            value = float(value)
            met = {"gt": value.__gt__, "gte": value.__ge__, "lt": value.__lt__, "lte": value.__le__}
        return all(met[name](bound) for name, bound in condition.items())
    return alike and bool(value == condition)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records, st.dictionaries(st.sampled_from("xyz"), conditions, min_size=1))
def test_filters_are_brute_force(
    tmp_path_factory: pytest.TempPathFactory, metadata: list[dict[str, Any]], asked: dict[str, Any]
) -> None:
    corpus = corpus_of(tmp_path_factory.mktemp("fields") / "data", metadata)
    fields = PassageFields(corpus)
    known = {name for one in metadata for name in one}
    if asked.keys() - known:
        with pytest.raises(InputError, match="no passage has this field"):
            fields.allowed(asked)
        return
    found = fields.allowed(asked)
    brute = [all(expected(one.get(name), want) for name, want in asked.items()) for one in metadata]
    assert found.tolist() == brute
    assert fields.allowed(asked) is found and not found.flags.writeable


@given(values, conditions)
def test_one_condition_is_the_definition(value: Any, condition: Any) -> None:
    column = Column(np.array([1], np.int32), [None, value])
    assert column.meeting(condition).tolist() == [expected(None, condition), expected(value, condition)]


def test_filters_of_a_large_corpus_are_kept_within_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_of(tmp_path / "data", [{"n": n} for n in range(10)])
    monkeypatch.setattr(indexer.passage_fields, "KEPT_BYTES", 35)
    fields = PassageFields(corpus)
    for value in range(8):
        assert fields.allowed({"n": value}).sum() == 1
    assert sum(one.nbytes for one in fields._kept.values()) == 30, "a byte a passage, three filters of ten"


def test_the_latest_filters_are_kept(tmp_path: Path) -> None:
    fields = PassageFields(corpus_of(tmp_path / "data", [{"x": 1}, {"x": 2}, {}]))
    first = fields.allowed({"x": 0})
    for value in range(1, KEPT_FILTERS):
        fields.allowed({"x": value})
    assert fields.allowed({"x": 0}) is first
    fields.allowed({"x": -1})
    assert fields.allowed({"x": 0}) is first and fields.allowed({"x": None}).tolist() == [False, False, True]


def test_a_corpus_without_fields_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"filter\.x: no passage has this field; there are: none"):
        PassageFields(corpus_of(tmp_path / "data", [{}, {}])).allowed({"x": 1})
