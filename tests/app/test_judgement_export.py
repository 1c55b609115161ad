import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.judgement_export import QRELS, VERDICTS, Exported, export_judgements
from app.judgements import Judgements, Said
from miner.verdicts import RELABEL
from retriever.data import duplicate_hash
from retriever.errors import InputError
from tests.stand_ins import write_json_lines

TEXTS = {"p0": "alpha beta", "p1": "gamma", "p2": "Alpha  beta"}


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Judgements]:
    opened = Judgements(f"sqlite:///{tmp_path / 'hone.db'}")
    yield opened
    opened.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set in which p2 is p0 again, and q2 is q0."""
    (tmp_path / "data").mkdir()
    write_json_lines(tmp_path / "data/corpus.jsonl", [{"_id": name, "text": text} for name, text in TEXTS.items()])
    queries = {"q0": "one", "q1": "two", "q2": "ONE"}
    write_json_lines(tmp_path / "data/queries.jsonl", [{"_id": name, "text": text} for name, text in queries.items()])
    return tmp_path / "data"


def said(text: str | None, passage_text: str, grade: int, query_id: str | None = None, judge: str = "ann") -> Said:
    return Said(query_id, text, "id", duplicate_hash(passage_text), grade, judge, None)


def test_verdicts_hold_for_each_query_and_passage_of_the_text(table: Judgements, data: Path, tmp_path: Path) -> None:
    table.add([said("one", "alpha beta", 0), said("one", "alpha beta", 2), said(None, "gamma", 0, "q1")], 0)
    out = tmp_path / "out.jsonl"
    assert export_judgements(table.all(), data, out, VERDICTS, RELABEL) == Exported(5, 2, 0, 0)
    copies = [
        {"query": query, "passage": passage, "relevant": True, "grade": 2, "action": "relabel"}
        for query in ("q0", "q2")
        for passage in ("p0", "p2")
    ]
    no = {"query": "q1", "passage": "p1", "relevant": False, "grade": 0}
    assert [json.loads(line) for line in out.read_text().splitlines()] == [*copies[:2], no, *copies[2:]]


def test_qrels_are_those_of_beir(table: Judgements, data: Path, tmp_path: Path) -> None:
    table.add([said("two", "gamma", 3), said("two", "gamma", 0, judge="bob"), said("two", "alpha beta", 0)], 0)
    out = tmp_path / "qrels.tsv"
    assert export_judgements(table.all(), data, out, QRELS, RELABEL).lines == 3
    assert out.read_text().splitlines() == ["query-id\tcorpus-id\tscore", "q1\tp1\t3", "q1\tp0\t0", "q1\tp2\t0"]


def test_what_the_data_set_has_not_is_counted(table: Judgements, data: Path, tmp_path: Path) -> None:
    given = [said("never asked", "gamma", 1), said("one", "changed since", 1), said("two", "gamma", 1)]
    table.add([*given, said("two", "gamma", 0, "q9"), said(None, "gamma", 1, "q9")], 0)
    assert export_judgements(table.all(), data, tmp_path / "out", VERDICTS, RELABEL) == Exported(1, 4, 2, 1)


def test_what_cannot_be_written(table: Judgements, data: Path, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    for out, form, action, named in (
        ("there", VERDICTS, RELABEL, "there: exists already"),
        ("out", "csv", RELABEL, "--format csv"),
        ("out", QRELS, "keep", "--action keep"),
    ):
        with pytest.raises(InputError, match=named):
            export_judgements(table.all(), data, tmp_path / out, form, action)
    assert not (tmp_path / "out").exists()
