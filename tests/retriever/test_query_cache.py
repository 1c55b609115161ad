import numpy as np

from retriever.query_cache import LONGEST, QueryCache


def vector(value: float) -> np.typing.NDArray[np.float32]:
    return np.array([value], np.float32)


def test_what_was_kept_is_known() -> None:
    cache = QueryCache()
    cache.keep({"a b": vector(1), "c": vector(2)})
    assert cache.known(["c", "d", "a b", "c"]) == {"c": vector(2), "a b": vector(1)}


def test_the_queries_that_were_asked_last_are_kept() -> None:
    cache = QueryCache(size=2)
    cache.keep({"a": vector(1), "b": vector(2)})
    cache.known(["a"])
    cache.keep({"c": vector(3)})
    assert {*cache.known("abc")} == {"a", "c"}, "b was asked longest ago when c came"


def test_a_long_text_is_not_kept() -> None:
    cache = QueryCache()
    cache.keep({"a" * LONGEST: vector(1)})
    assert not cache.known(["a" * LONGEST])


def test_what_a_caller_does_to_its_vectors_stays_its_own() -> None:
    cache = QueryCache()
    own = vector(1)
    cache.keep({"a": own})
    own[:] = 0
    assert cache.known(["a"])["a"] == vector(1)
