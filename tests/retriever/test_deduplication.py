from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.data import hash64
from retriever.deduplication import Judgements, UniqueTexts
from retriever.errors import InputError


def new_texts() -> tuple[UniqueTexts, list[tuple[str, str, str]]]:
    written: list[tuple[str, str, str]] = []
    return UniqueTexts("passage", lambda *line: written.append(line), Counter()), written


def test_a_text_is_written_once_under_its_first_id() -> None:
    texts, written = new_texts()
    keys = [texts.add("f:1", "one", "a", "One"), texts.add("f:2", "two", "b"), texts.add("f:3", "one", "c")]
    assert keys == [hash64("one"), hash64("two"), hash64("one")]
    assert written == [("a", "One", "one"), ("b", "", "two")]
    assert texts.ids == {hash64("one"): "a", hash64("two"): "b"}
    assert texts.dropped == {"passage id of a text that has another": 1}


def test_without_an_id_the_hash_is_the_id() -> None:
    texts, written = new_texts()
    texts.add("f:1", "one")
    texts.add("f:2", "one")
    assert written == [(f"{hash64('one'):016x}", "", "one")] and not texts.dropped


def test_one_id_for_two_texts_is_named() -> None:
    texts, _ = new_texts()
    texts.add("f:1", "one", "a")
    texts.add("f:2", "one", "a")
    with pytest.raises(InputError, match="f:3: passage id 'a' stands for another text"):
        texts.add("f:3", "two", "a")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(2**64 - 3, 2**64 - 1), st.integers(0, 1))))
def test_settled_is_the_highest_relevance_of_each_pair_at_its_first_place(rows: list[tuple[int, int, int]]) -> None:
    judged = Judgements()
    for row in rows:
        judged.add(*row)
    highest: dict[tuple[int, int], int] = {}
    for query, passage, relevance in rows:
        highest[query, passage] = max(relevance, highest.get((query, passage), 0))
    dropped: Counter[str] = Counter()
    assert judged.settled(dropped) == [(*pair, relevance) for pair, relevance in highest.items()]
    assert dropped.total() == len(rows) - len(highest)
    outranked = sum(relevance < highest[query, passage] for query, passage, relevance in rows)
    assert dropped["negative that is a positive of its query"] == outranked
