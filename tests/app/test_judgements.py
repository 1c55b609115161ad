from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from app.judgements import Judgements, Said, query_key
from retriever.errors import InputError

TEXT = 7
"""Stands for the hash of a passage's text."""


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Judgements]:
    opened = Judgements(f"sqlite:///{tmp_path / 'hone.db'}")
    yield opened
    opened.close()


def said(grade: int, judge: str = "ann", text_hash: int = TEXT, note: str | None = None) -> Said:
    return Said("q", "alpha", "p0", text_hash, grade, judge, note)


def grades(table: Judgements, position: int | None = None) -> dict[int, int]:
    (found,) = table.on([("other", "Alpha ")], table.position() if position is None else position)
    return found


def test_the_same_again_is_one_and_another_word_is_kept_beside_the_first(table: Judgements) -> None:
    assert table.position() == 0 and grades(table) == {}
    assert table.add([said(1), said(1)], generation=3, key_id="k") == 1
    assert table.add([said(1)], generation=4) == 0
    assert grades(table) == {TEXT: 1}
    assert table.add([said(0)], generation=4) == 1 and grades(table) == {TEXT: 0}
    assert table.add([said(0, note="why")], generation=4) == 1, "a note is news"
    assert table.add([said(1)], generation=5) == 1, "back again is no repetition"
    rows = table.newest(10)
    assert [(row.grade, row.note, row.generation, row.key_id) for row in rows] == [
        (1, None, 5, None),
        (0, "why", 4, None),
        (0, None, 4, None),
        (1, None, 3, "k"),
    ]
    assert [row.id for row in table.newest(2, before=rows[1].id)] == [rows[2].id, rows[3].id]
    assert [row.id for row in table.all()] == [row.id for row in reversed(rows)]


def test_what_stood_at_a_position_stays_what_it_was(table: Judgements) -> None:
    table.add([said(1)], generation=0)
    position = table.position()
    table.add([said(0), said(1, text_hash=8)], generation=0)
    assert grades(table, position) == {TEXT: 1} and grades(table) == {TEXT: 0, 8: 1}
    assert grades(table, 0) == {}


@pytest.mark.parametrize(("given", "settled"), [((1, 0), 1), ((1, 0, 0), 0), ((3, 0, 2), 2), ((0, 0), 0), ((5, 2), 5)])
def test_of_several_judges_the_middle_grade_counts_and_half_a_yes_is_one(
    table: Judgements, given: tuple[int, ...], settled: int
) -> None:
    for number, grade in enumerate(given):
        table.add([said(1 - min(grade, 1), f"judge {number}"), said(grade, f"judge {number}")], generation=0)
    assert grades(table) == {TEXT: settled}


def test_a_query_is_its_text_or_where_none_was_said_its_id(table: Judgements) -> None:
    assert query_key("a", "Alpha  beta") == query_key("b", "alpha beta") != query_key("a", None)
    by_id = Said("q", None, "p1", 1, 1, "ann", None)
    by_text = Said(None, "alpha", "p2", 2, 1, "ann", None)
    table.add([by_id, by_text, said(1)], generation=0)
    queries = [("q", "alpha"), ("q", "beta"), ("r", "ALPHA"), ("r", "beta")]
    found = [set(one) for one in table.on(queries, table.position())]
    assert found == [{1, 2, TEXT}, {1}, {2, TEXT}, set()], "with id and text it is the text that counts"


def test_more_queries_than_a_statement_takes(table: Judgements) -> None:
    table.add([Said(None, f"text {n}", "p", n, n % 2, "ann", None) for n in range(2500)], generation=0)
    found = table.on([(f"q{n}", f"text {n}") for n in range(2500)], table.position())
    assert found == [{n: n % 2} for n in range(2500)]


def test_what_many_say_at_once_is_stored_once(tmp_path: Path) -> None:
    url, together = f"sqlite:///{tmp_path / 'hone.db'}", Barrier(4)
    tables = [Judgements(url) for _ in range(4)]

    def say(table: Judgements) -> int:
        together.wait()
        return sum(table.add([said(1, f"judge {n}")], generation=0) for n in range(10))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(say, tables)) == 10
    assert len(tables[0].all()) == 10
    for table in tables:
        table.close()


def test_a_database_that_cannot_be_opened_is_named() -> None:
    with pytest.raises(InputError, match="set DATABASE_URL"):
        Judgements("sqlite:////nowhere/hone.db")
