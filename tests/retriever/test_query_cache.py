from collections.abc import Sequence

import numpy as np
import pytest

from retriever.protocols import FloatArray
from retriever.query_cache import LONGEST, QueryCache
from tests.stand_ins import HashEncoder


class Counting:
    """An encoder that remembers what it was asked for."""

    def __init__(self) -> None:
        self.encoder = HashEncoder()
        self.asked: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        self.asked.append(list(texts))
        return self.encoder.encode_queries(texts)


@pytest.fixture
def encode() -> Counting:
    return Counting()


def test_a_query_is_encoded_once(encode: Counting) -> None:
    cache = QueryCache()
    asked = ["a b", "c", "a b"], ["c", "d"], ["d", "a b"]
    for texts in asked:
        np.testing.assert_array_equal(cache.encode(texts, encode), encode.encoder.encode_queries(texts))
    assert encode.asked == [["a b", "c"], ["d"]]


def test_the_queries_that_were_asked_last_are_kept(encode: Counting) -> None:
    cache = QueryCache(size=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        cache.encode([text], encode)
    assert encode.asked == [["a"], ["b"], ["c"], ["b"]], "b was asked longest ago when c came"


def test_a_long_text_is_not_kept(encode: Counting) -> None:
    cache = QueryCache()
    for _ in range(2):
        cache.encode(["a" * LONGEST], encode)
    assert len(encode.asked) == 2


def test_what_a_caller_does_to_its_vectors_stays_its_own(encode: Counting) -> None:
    cache = QueryCache()
    expected = cache.encode(["a"], encode).copy()
    for _ in range(2):
        cache.encode(["a"], encode)[:] = 0
    np.testing.assert_array_equal(cache.encode(["a"], encode), expected)


def test_an_error_keeps_nothing(encode: Counting) -> None:
    cache = QueryCache()

    def fail(texts: Sequence[str]) -> FloatArray:
        raise ValueError("no such query")

    with pytest.raises(ValueError, match="no such query"):
        cache.encode(["a"], fail)
    cache.encode(["a"], encode)
    assert encode.asked == [["a"]]
