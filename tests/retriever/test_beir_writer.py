import json
from pathlib import Path

import pytest

from retriever.beir import QueryLine, read_passages, read_query_lines
from retriever.beir_writer import DatasetWriter, new_dataset
from retriever.errors import InputError
from retriever.trec import read_qrels


def fill(writer: DatasetWriter) -> None:
    writer.add_passage("a", "Título", 'line one\nline "two"')
    writer.add_query("q", "¿por qué?", '{"lang": "español"}')
    assert writer.write_qrels("dev", iter([("q", "a", 1)])) == 1


def test_what_is_written_is_read(tmp_path: Path) -> None:
    with new_dataset(tmp_path / "deep" / "out") as writer:
        fill(writer)
        assert not (tmp_path / "deep" / "out").exists()
    out = tmp_path / "deep" / "out"
    assert list(read_passages(out)) == [(1, "a", "Título", 'line one\nline "two"')]
    assert list(read_query_lines(out)) == [QueryLine(1, "q", "¿por qué?", json.dumps({"lang": "español"}))]
    assert list(read_qrels(out / "qrels" / "dev.tsv")) == [(2, "q", "a", 1)]
    assert (writer.passages, writer.queries) == (1, 1)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_dataset(tmp_path / "out") as writer:
            fill(writer)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_exists_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="exists already"), new_dataset(out):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    with new_dataset(tmp_path / "empty") as writer:
        fill(writer)
    assert (tmp_path / "empty" / "corpus.jsonl").exists()
