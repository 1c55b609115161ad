"""TREC run files, read and written, and relevance judgements in TREC or BEIR layout, plain or gzipped.

Does not know rows, corpora or measures: queries and passages are the ids that the files name.
"""

import gzip
import math
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from retriever.durable import fsync_path
from retriever.errors import InputError

BEIR_HEADER = [b"query-id", b"corpus-id", b"score"]
BOM = b"\xef\xbb\xbf"


def read_qrels(path: Path) -> Iterator[tuple[int, str, str, int]]:
    """Yield (line number, query id, passage id, relevance) lazily, in the file's order.

    BEIR's header, ``query-id corpus-id score``, announces three columns between tabs; without it the file has
    TREC's four, ``qid 0 pid relevance``. Blank lines are skipped; a repeated judgement is yielded
    again. A name that ends in ``.gz`` is read as gzip.

    Raises InputError, naming file and line, for a line that does not fit, and for a file that cannot be read.
    """
    separator, columns, width = None, "the 4 columns 'qid 0 pid relevance' or a BEIR header", 4
    for number, line in numbered_lines(path):
        if number == 1 and line.split() == BEIR_HEADER:
            separator, columns, width = b"\t", "3 columns between tabs, as the header says", 3
            continue
        fields = [field.strip() for field in line.split(separator)]
        if len(fields) != width or not all(fields):
            raise InputError(f"{path}:{number}: expected {columns}; found {_shown(line)}")
        query, passage = _text(fields[0], path, number), _text(fields[-2], path, number)
        yield number, query, passage, _relevance(fields[-1], path, number)


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Read a TREC run, ``qid Q0 pid rank score tag``, as (passage id, score) lists, best first, by query id.

    The order is trec_eval's: by score as a float32, ties by passage id, both falling; the rank column is
    ignored. Queries keep the file's order. A name that ends in ``.gz`` is read as gzip.

    Raises InputError, naming file and line, for a line without six columns, a score that is no finite number
    and a passage that a query holds twice, and for a file that cannot be read.
    """
    run: dict[str, dict[str, float]] = {}
    for number, line in numbered_lines(path):
        fields = line.split()
        if len(fields) != 6:
            raise InputError(
                f"{path}:{number}: expected the 6 columns 'qid Q0 pid rank score tag'; found {_shown(line)}"
            )
        query, passage = _text(fields[0], path, number), _text(fields[2], path, number)
        hits = run.setdefault(query, {})
        if passage in hits:
            raise InputError(f"{path}:{number}: passage {passage!r} is listed twice for query {query!r}; keep one line")
        hits[passage] = _score(fields[4], path, number)
    return {query: _as_trec_eval(hits) for query, hits in run.items()}


def write_run(path: Path, run: Iterable[tuple[str, Iterable[tuple[str, float]]]], tag: str = "hone") -> int:
    """Write (query id, (passage id, score) pairs best first) as a TREC run; returns the number of lines.

    ``run`` is consumed query by query. The file appears complete or not at all, and replaces an older one; a
    name that ends in ``.gz`` is gzipped. Scores keep every digit.

    Raises InputError for a path that is no file in an existing folder, an empty id or one with white space, a
    query or passage that comes twice, a score that is not finite and one above the score before it.
    """
    count = 0
    with _replacing(path) as file:
        for line in _run_lines(path, run, tag):
            file.write(line.encode())
            count += 1
    return count


@contextmanager
def _replacing(path: Path) -> Iterator[BufferedIOBase]:
    """Open a stream whose bytes, gzipped if ``path`` says so, take the place of ``path`` if nothing fails."""
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written; name a file in a folder that exists")
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as plain:
            if path.suffix == ".gz":
                # Neither name nor time in the header: the same run gives the same bytes.
                with gzip.GzipFile("", "wb", 6, plain, mtime=0) as packed:
                    yield packed
            else:
                yield plain
        fsync_path(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def _run_lines(path: Path, run: Iterable[tuple[str, Iterable[tuple[str, float]]]], tag: str) -> Iterator[str]:
    _check_column(path, "tag", tag)
    queries: set[str] = set()
    for query, hits in run:
        _check_column(path, "query id", query)
        if query in queries:
            raise InputError(f"{path}: query {query!r} comes twice; merge its hits")
        queries.add(query)
        passages: set[str] = set()
        last = math.inf
        for rank, (passage, given) in enumerate(hits, 1):
            _check_column(path, "passage id", passage)
            score = float(given)
            if passage in passages:
                raise InputError(f"{path}: query {query!r}: passage {passage!r} comes twice; keep its best hit")
            if not math.isfinite(score) or score > last:
                wrong = "above the one before it: sort the hits" if math.isfinite(score) else "not finite"
                raise InputError(f"{path}: query {query!r}: score {score} at rank {rank} is {wrong}")
            passages.add(passage)
            last = score
            yield f"{query} Q0 {passage} {rank} {score!r} {tag}\n"


def _check_column(path: Path, what: str, text: str) -> None:
    if text.encode().split() != [text.encode()]:
        raise InputError(f"{path}: {what} {text!r} is empty or has white space, which a TREC file cannot hold")


def _as_trec_eval(hits: dict[str, float]) -> list[tuple[str, float]]:
    with np.errstate(over="ignore"):
        single = np.array(list(hits.values()), dtype=np.float64).astype(np.float32).tolist()
    ranked = sorted(zip(single, hits, strict=True), reverse=True)
    return [(passage, hits[passage]) for _, passage in ranked]


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line) of a file, plain or gzipped, without a byte order mark and ends of lines.

    Blank lines are passed over. Raises InputError for a file that cannot be read.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, 1):
                content = line.removeprefix(BOM) if number == 1 else line
                if content.strip():
                    yield number, content.rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); check the path and that the file is whole") from error


def _relevance(field: bytes, path: Path, number: int) -> int:
    try:
        return int(field)
    except ValueError as error:
        raise InputError(f"{path}:{number}: relevance {_shown(field)} is not a whole number") from error


def _score(field: bytes, path: Path, number: int) -> float:
    try:
        score = float(field)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise InputError(f"{path}:{number}: score {_shown(field)} is not a finite number")
    return score


def _text(field: bytes, path: Path, number: int) -> str:
    try:
        return field.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{number}: {_shown(field)} is not UTF-8; save the file as UTF-8") from error


def _shown(content: bytes) -> str:
    text = content.decode(errors="backslashreplace")
    return repr(text if len(text) <= 80 else text[:77] + "...")
