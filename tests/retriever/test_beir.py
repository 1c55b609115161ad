import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retriever.beir import (
    QueryLine,
    find_file,
    read_corpus,
    read_json_lines,
    read_passages,
    read_queries,
    read_query_lines,
)
from retriever.errors import InputError
from tests.stand_ins import write_json_lines

GOOD = {"_id": "a", "title": "A", "text": "first"}


def write(folder: Path, name: str, *lines: str | dict[str, Any]) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_passages_and_queries_come_with_their_line_numbers(tmp_path: Path) -> None:
    write(tmp_path, "corpus.jsonl", GOOD, "", {"_id": 7, "text": "no title", "metadata": {}}, {**GOOD, "title": None})
    write(tmp_path, "queries.jsonl", {"_id": "q", "text": "why?"})
    assert list(read_passages(tmp_path)) == [(1, "a", "A", "first"), (3, "7", "", "no title"), (4, "a", "", "first")]
    assert list(read_queries(tmp_path)) == [(1, "q", "why?")]


def test_metadata_is_kept_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, "corpus.jsonl", {**GOOD, "metadata": {"b": [1, "ü"], "a": None}}, {"_id": "b", "text": "c"})
    assert [line.metadata for line in read_corpus(tmp_path)] == ['{"a": null, "b": [1, "\\u00fc"]}', ""]
    write(tmp_path, "queries.jsonl", {"_id": "q", "text": "why?", "metadata": {"lang": "de"}}, GOOD)
    assert list(read_query_lines(tmp_path)) == [
        QueryLine(1, "q", "why?", '{"lang": "de"}'),
        QueryLine(2, "a", "first", ""),
    ]
    for name, read in (("corpus", read_passages), ("queries", read_queries)):
        write(tmp_path, f"{name}.jsonl", {**GOOD, "metadata": "none"})
        with pytest.raises(InputError, match=rf'{name}\.jsonl:1: field "metadata" must be an object, not str'):
            list(read(tmp_path))


def test_a_title_alone_is_a_text(tmp_path: Path) -> None:
    write(tmp_path, "corpus.jsonl", {"_id": "a", "title": "A", "text": ""})
    assert list(read_passages(tmp_path)) == [(1, "a", "A", "")]


def test_gzip_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wb") as file:
        file.write(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert list(read_passages(tmp_path)) == [(1, "a", "A", "first")]


def test_lines_are_read_one_by_one(tmp_path: Path) -> None:
    """What follows a line is looked at only when it is asked for: files may be larger than the memory."""
    write(tmp_path, "corpus.jsonl", GOOD, "{broken")
    passages = read_passages(tmp_path)
    assert next(passages) == (1, "a", "A", "first")
    with pytest.raises(InputError):
        next(passages)


def test_the_plain_file_comes_before_the_gzipped(tmp_path: Path) -> None:
    for name in ("corpus.jsonl.gz", "corpus.jsonl"):
        write(tmp_path, name)
        assert find_file(tmp_path, "corpus.jsonl").name == name
    with pytest.raises(InputError, match=r"queries\.jsonl: no such file \(nor queries\.jsonl\.gz\)"):
        find_file(tmp_path, "queries.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"_id": "b", "text": "x"', "malformed JSON"),
        ("[1, 2]", "not a JSON object"),
        ('"text"', "not a JSON object"),
        ({"text": "x"}, "no field '_id'"),
        ({"_id": "b"}, "no field 'text'"),
        ({"_id": "b", "text": None}, "no field 'text'"),
        ({"_id": "", "text": "x"}, "field '_id' is empty"),
        ({"_id": " ", "text": "x"}, "field '_id' is empty"),
        ({"_id": ["b"], "text": "x"}, "field '_id' must be a string, not list"),
        ({"_id": "b", "text": {"en": "x"}}, "field 'text' must be a string, not dict"),
        ({"_id": "b", "text": 1.5}, "field 'text' must be a string, not float"),
        ({"_id": "b", "text": " \t"}, "'b' has an empty text"),
        ('{"_id": "b", "text": "\\ud800"}', "field 'text' is not valid Unicode"),
        ('{"_id": "\\ud800", "text": "x"}', "field '_id' is not valid Unicode"),
    ],
)
@pytest.mark.parametrize(("name", "read"), [("corpus.jsonl", read_passages), ("queries.jsonl", read_queries)])
def test_a_bad_line_is_named(
    tmp_path: Path,
    name: str,
    read: Callable[[Path], Iterator[object]],
    line: str | dict[str, Any],
    message: str,
) -> None:
    write(tmp_path, name, GOOD, "", line, {**GOOD, "_id": "c"})
    with pytest.raises(InputError) as caught:
        list(read(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path / name}:3: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("title", "message"),
    [('["A"]', "'title' must be a string, not list"), ('"\\udfff"', "'title' is not valid Unicode")],
)
def test_a_bad_title_is_named(tmp_path: Path, title: str, message: str) -> None:
    write(tmp_path, "corpus.jsonl", f'{{"_id": "a", "text": "x", "title": {title}}}')
    with pytest.raises(InputError, match=message):
        list(read_passages(tmp_path))


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(b'{"_id": "a", "text": "caf\xe9"}\n')
    with pytest.raises(InputError, match=r"corpus\.jsonl:1: not UTF-8 .*save the file as UTF-8"):
        list(read_passages(tmp_path))


@pytest.mark.parametrize("cut", [0.5, 0.9])
def test_a_truncated_gzip_file_is_named(tmp_path: Path, cut: float) -> None:
    path = tmp_path / "corpus.jsonl.gz"
    whole = gzip.compress("".join(json.dumps({**GOOD, "n": n**5}) + "\n" for n in range(500)).encode())
    path.write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(InputError, match=r"corpus\.jsonl\.gz.*cannot be read"):
        list(read_json_lines(path))
    path.write_bytes(b"plain text\n")
    with pytest.raises(InputError, match=r"corpus\.jsonl\.gz.*cannot be read"):
        list(read_json_lines(path))
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(100) + whole[middle + 100 :])
    with pytest.raises(InputError, match=r"corpus\.jsonl\.gz"):
        list(read_json_lines(path))


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "corpus.jsonl", [])
    assert list(read_passages(tmp_path)) == []
