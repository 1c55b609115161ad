import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.tokens import NARROW, Tokens, joined

TEXTS = st.lists(st.tuples(st.lists(st.integers(0, 200_000), max_size=9), st.booleans()), min_size=1, max_size=20)


def told(tokens: Tokens) -> list[tuple[list[int], bool]]:
    return [(ids.tolist(), cut) for ids, cut in zip(tokens.split(), tokens.cut.tolist(), strict=True)]


def of(texts: list[tuple[list[int], bool]]) -> Tokens:
    return Tokens.of([ids for ids, _ in texts], [cut for _, cut in texts])


@given(TEXTS)
def test_each_text_gets_its_ids_back(texts: list[tuple[list[int], bool]]) -> None:
    assert told(of(texts)) == texts and len(of(texts)) == len(texts)


@given(TEXTS, st.data())
def test_some_texts_are_those_texts(texts: list[tuple[list[int], bool]], data: st.DataObject) -> None:
    rows = data.draw(st.sets(st.integers(0, len(texts) - 1)))
    taken = of(texts).take(np.array(sorted(rows), np.int32))
    assert told(taken) == [texts[row] for row in sorted(rows)]


@given(TEXTS, TEXTS)
def test_parts_are_joined_in_order(texts: list[tuple[list[int], bool]], more: list[tuple[list[int], bool]]) -> None:
    together, at_once = joined([of(texts), of(more)]), of(texts + more)
    assert told(together) == texts + more
    assert together.ids.dtype == at_once.ids.dtype


@pytest.mark.parametrize(("largest", "size"), [(0, 2), (NARROW - 1, 2), (NARROW, 4)])
def test_an_id_takes_two_bytes_where_they_hold_it(largest: int, size: int) -> None:
    assert of([([1, largest], False)]).ids.itemsize == size
