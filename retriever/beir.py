"""BEIR folders: corpus.jsonl, queries.jsonl and qrels/<split>.tsv, plain or gzipped, read line by line.

Does not know what becomes of the lines.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retriever.errors import InputError
from retriever.trec import numbered_lines


def find_file(folder: Path, name: str) -> Path:
    """Return ``folder/name`` or ``folder/name.gz``. Raises InputError if neither exists."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    if name.startswith("qrels/") and (there := sorted(path.name for path in (folder / "qrels").glob("*"))):
        raise InputError(f"{folder / name}: no such file (nor {name}.gz); in qrels/ there are {', '.join(there)}")
    raise InputError(f"{folder / name}: no such file (nor {name}.gz); see `hone dataset --help` for other formats")


def find_qrels(folder: Path) -> dict[str, Path]:
    """Return the qrels files of a BEIR folder by the names of their splits, in order."""
    names = {path.name.removesuffix(".gz") for path in (folder / "qrels").glob("*")}
    return {name[:-4]: find_file(folder, f"qrels/{name}") for name in sorted(names) if name.endswith(".tsv")}


def read_json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (line number, object) of a JSON-lines file; blank lines are passed over.

    Raises InputError naming file and line for what is not a JSON object, and for a file that cannot be read.
    """
    for number, line in numbered_lines(path):
        try:
            record = json.loads(line)
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
        except ValueError as error:
            raise InputError(f"{path}:{number}: malformed JSON ({error}); mend or remove the line") from error
        if not isinstance(record, dict):
            raise InputError(f'{path}:{number}: not a JSON object; write {{"_id": …, "text": …}}')
        yield number, record


def _field(path: Path, number: int, record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None:
        raise InputError(
            f"{path}:{number}: no field {name!r}, but {', '.join(record) or 'nothing'}; each line needs _id and text"
        )
    if not isinstance(value, str | int):
        raise InputError(f"{path}:{number}: field {name!r} must be a string, not {type(value).__name__}")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path}:{number}: field {name!r} is not valid Unicode ({error.reason}); mend it") from error
    if name == "_id" and not text.strip():
        raise InputError(f"{path}:{number}: field {name!r} is empty; give each line its own id")
    return text


@dataclass(frozen=True)
class PassageLine:
    """One line of corpus.jsonl; ``metadata`` is the JSON object that it has under that name, as text, or empty."""

    number: int
    id: str
    title: str
    text: str
    metadata: str


OnEmpty = Callable[[int, str], None]
"""Called with line number and id of a passage without a text, which is then passed over."""


def pass_over(number: int, passage_id: str) -> None:
    """Be an OnEmpty for those who need no such passage."""


def read_passages(folder: Path, on_empty: OnEmpty | None = None) -> Iterator[tuple[int, str, str, str]]:
    """Yield (line number, id, title, text) of the corpus. Raises InputError like ``read_corpus``."""
    for line in read_corpus(folder, on_empty):
        yield line.number, line.id, line.title, line.text


def read_corpus(folder: Path, on_empty: OnEmpty | None = None) -> Iterator[PassageLine]:
    """Yield the lines of the corpus. Raises InputError like ``read_passage_lines``."""
    yield from read_passage_lines(find_file(folder, "corpus.jsonl"), on_empty)


def read_passage_lines(path: Path, on_empty: OnEmpty | None = None) -> Iterator[PassageLine]:
    """Yield the lines of a file like corpus.jsonl.

    Raises InputError for a missing field, an empty text (unless ``on_empty`` is there to take it), and metadata that
    is no object.
    """
    for number, record in read_json_lines(path):
        passage_id, text = _field(path, number, record, "_id"), _field(path, number, record, "text")
        title = _field(path, number, record, "title") if record.get("title") else ""
        if not (title.strip() or text.strip()):
            if on_empty is not None:
                on_empty(number, passage_id)
                continue
            raise InputError(f"{path}:{number}: passage {passage_id!r} has an empty text; remove it or fill it")
        yield PassageLine(number, passage_id, title, text, _metadata(path, number, record))


def _metadata(path: Path, number: int, record: Mapping[str, Any]) -> str:
    metadata = record.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise InputError(f'{path}:{number}: field "metadata" must be an object, not {type(metadata).__name__}')
    return json.dumps(metadata, sort_keys=True) if metadata else ""


@dataclass(frozen=True)
class QueryLine:
    """One line of queries.jsonl; ``metadata`` is the JSON object that it has under that name, as text, or empty."""

    number: int
    id: str
    text: str
    metadata: str


def read_queries(folder: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, id, text) of the queries. Raises InputError like ``read_query_lines``."""
    for line in read_query_lines(folder):
        yield line.number, line.id, line.text


def read_query_lines(folder: Path) -> Iterator[QueryLine]:
    """Yield the lines of the queries.

    Raises InputError for a missing field, an empty text, and metadata that is no object.
    """
    path = find_file(folder, "queries.jsonl")
    for number, record in read_json_lines(path):
        query_id, text = _field(path, number, record, "_id"), _field(path, number, record, "text")
        if not text.strip():
            raise InputError(f"{path}:{number}: query {query_id!r} has an empty text; remove it or fill it")
        yield QueryLine(number, query_id, text, _metadata(path, number, record))
