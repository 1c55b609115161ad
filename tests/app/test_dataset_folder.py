import json
from pathlib import Path
from typing import Any

import pytest

from app.dataset_folder import SUMMARY_FILE, check_target, publish
from retriever.durable import sha256_file
from retriever.errors import InputError


def write(out: Path, text: str = "one é\n") -> None:
    facts: dict[str, Any] = {"kind": "toy", "passages": 2}
    qrels = {"train": [("q2", "b"), ("q1", "a")], "test": []}
    publish(out, {"b": "two", "a": text}, {"q1": "first?", "q2": "second?"}, qrels, facts)


def test_a_beir_folder_sorted_by_id(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    write(out)
    lines = (out / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"_id": "a", "title": "", "text": "one é\n"},
        {"_id": "b", "title": "", "text": "two"},
    ]
    assert (out / "queries.jsonl").read_text() == (
        '{"_id": "q1", "text": "first?"}\n{"_id": "q2", "text": "second?"}\n'
    )
    assert (out / "qrels/train.tsv").read_text() == "query-id\tcorpus-id\tscore\nq1\ta\t1\nq2\tb\t1\n"
    assert (out / "qrels/test.tsv").read_text() == "query-id\tcorpus-id\tscore\n"
    facts = json.loads((out / SUMMARY_FILE).read_bytes())
    assert facts["kind"] == "toy" and facts["passages"] == 2
    assert facts["sha256"]["corpus.jsonl"] == sha256_file(out / "corpus.jsonl")
    assert len(facts["sha256"]) == 4
    assert list(out.parent.iterdir()) == [out], "no stage folder is left behind"


def test_the_same_content_is_left_alone_and_other_content_replaces_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out)
    before = (out / "corpus.jsonl").stat().st_ino
    write(out)
    assert (out / "corpus.jsonl").stat().st_ino == before
    write(out, "changed")
    assert '"changed"' in (out / "corpus.jsonl").read_text()
    (out / "corpus.jsonl").write_text("altered by hand")
    write(out, "changed")
    assert '"changed"' in (out / "corpus.jsonl").read_text()
    assert list(tmp_path.iterdir()) == [out]


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out)
    with pytest.raises(UnicodeEncodeError):
        write(out, "\ud800")
    assert "one é" in (out / "corpus.jsonl").read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [out]


def test_a_free_place_or_a_folder_of_the_same_kind_is_accepted(tmp_path: Path) -> None:
    check_target(tmp_path / "absent", "toy")
    check_target(tmp_path, "toy")
    write(tmp_path / "out")
    check_target(tmp_path / "out", "toy")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("file", None, "is a file"),
        ("out/notes.txt", None, "holds no dataset.json"),
        ("out/dataset.json", "{", "not the summary of a data set"),
        ("out/dataset.json", "[]", "not the summary of a data set"),
        ("out/dataset.json", '{"kind": "other", "sha256": {}}', "kind 'other', not 'toy'"),
        ("out/runs/run.toml", '{"kind": "toy", "sha256": {}}', "run.toml: no file of the data set"),
    ],
)
def test_a_place_that_holds_something_else_is_refused(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    if content is not None:
        (tmp_path / "out" / SUMMARY_FILE).write_text(content)
    target = tmp_path / name.partition("/")[0]
    with pytest.raises(InputError, match=message):
        check_target(target, "toy")
    assert path.exists()
