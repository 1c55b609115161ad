import json
from collections import Counter
from pathlib import Path

import pytest

from retriever.document_rows import DocumentColumns, DocumentRow, read_document_rows
from retriever.errors import InputError
from retriever.imports import import_documents
from retriever.tables import open_table
from tests.stand_ins import write_json_lines

ROWS: list[dict[str, object]] = [
    {"id": 7, "title": " A ", "contents": " b ", "year": 1999, "tags": ["x"]},
    {"id": "n2", "title": "", "contents": "c"},
    {"id": "n3", "title": "", "contents": "", "year": None},
    {"id": "n4", "title": "headed", "contents": None},
]


def read(
    folder: Path, columns: DocumentColumns, rows: list[dict[str, object]] = ROWS
) -> tuple[list[DocumentRow], Counter[str]]:
    write_json_lines(folder / "docs.jsonl", rows)
    dropped: Counter[str] = Counter()
    return [*read_document_rows(open_table(str(folder / "docs.jsonl"), "train"), columns, dropped)], dropped


def test_columns_are_guessed_and_what_says_nothing_is_counted(tmp_path: Path) -> None:
    found, dropped = read(tmp_path, DocumentColumns(metadata=("year", "tags")))
    assert [(row.id, row.title, row.text) for row in found] == [("7", "A", "b"), ("n2", "", "c"), ("n4", "headed", "")]
    assert [row.metadata for row in found] == ['{"tags": ["x"], "year": 1999}', "", ""]
    assert dropped == {"document without a text": 1}


@pytest.mark.parametrize(
    ("columns", "rows", "said"),
    [
        (DocumentColumns(), [{"words": "a"}], "name the column of the texts; there are words"),
        (DocumentColumns(text="body"), ROWS, "no column 'body'; there are id, title, contents, year, tags"),
        (DocumentColumns(metadata=("ye",)), ROWS, "no column 'ye'"),
        (DocumentColumns(), [{"text": 3}], "docs.jsonl:1: column 'text' holds a value of type int"),
        (DocumentColumns(), [{"text": "a", "id": "x"}, {"text": "a", "id": None}], "docs.jsonl:2: column 'id' holds"),
        (DocumentColumns(metadata=("m",)), [{"text": "a", "m": float("nan")}], "docs.jsonl:1: metadata of columns m"),
        (DocumentColumns(metadata=("m",)), [{"text": "a", "m": "\ud800"}], "docs.jsonl:1: metadata of columns m"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, columns: DocumentColumns, rows: list[dict[str, object]], said: str
) -> None:
    with pytest.raises(InputError) as refused:
        read(tmp_path, columns, rows)
    assert said in str(refused.value)


def test_documents_without_ids_get_those_of_their_texts_and_come_once(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "docs.jsonl", [{"text": "a"}, {"text": "b"}, {"text": " a"}])
    table = open_table(str(tmp_path / "docs.jsonl"), "train")
    made = import_documents(table, tmp_path / "out", DocumentColumns())
    assert (made.passages, made.dropped) == (2, {"document that is there already": 1})
    ids = [json.loads(line)["_id"] for line in (tmp_path / "out/corpus.jsonl").read_text().splitlines()]
    assert len(set(ids)) == 2 and all(len(name) == 16 for name in ids)
    write_json_lines(tmp_path / "docs.jsonl", [{"text": " "}])
    with pytest.raises(InputError, match="no document has a text"):
        import_documents(table, tmp_path / "none", DocumentColumns())
    assert not (tmp_path / "none").exists()
