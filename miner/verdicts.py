"""Verdicts of judges on pairs of query and passage, read from a file and respected by every refresh.

Does not know who judged, nor where candidates come from.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.data import Corpus, QuerySet
from retriever.durable import sha256_file
from retriever.errors import InputError
from retriever.negatives import Verdict
from retriever.protocols import BoolArray, IntArray


@dataclass(frozen=True)
class StoredVerdicts:
    """``keys`` int64 [n] ascending, query row × ``passages`` + passage row; ``relevant`` bool [n]; the file's digest.

    ``passages`` is the number of rows of the corpus.
    """

    keys: NDArray[np.int64]
    relevant: BoolArray
    passages: int
    sha256: str

    def respected(self, verdicts: NDArray[np.uint8], query_rows: IntArray, rows: IntArray) -> NDArray[np.uint8]:
        """Return ``verdicts`` uint8 [q, D] of the candidates ``rows`` int32 [q, D] of ``query_rows``, as judged.

        A judged candidate becomes JUDGED_RELEVANT or JUDGED_IRRELEVANT, whether or not a filter refused it. Known
        positives and duplicates stay what they are: no judge makes a negative of them.
        """
        if not len(self.keys):
            return verdicts
        wanted = query_rows.astype(np.int64)[:, None] * self.passages + rows
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        judged = (self.keys[places] == wanted) & (rows >= 0)
        judged &= np.isin(verdicts, (Verdict.ELIGIBLE, Verdict.FILTERED))
        by_judge = np.where(self.relevant[places], Verdict.JUDGED_RELEVANT, Verdict.JUDGED_IRRELEVANT)
        return np.where(judged, by_judge.astype(np.uint8), verdicts)

    def relevant_to(self, query_row: int) -> IntArray:
        """Return the passage rows int32 [n], ascending, judged relevant for a query: in a batch, too, no negatives."""
        start, end = np.searchsorted(self.keys, (query_row * self.passages, (query_row + 1) * self.passages))
        return (self.keys[start:end][self.relevant[start:end]] - query_row * self.passages).astype(np.int32)


def read_verdicts(path: Path, corpus: Corpus, queries: QuerySet, warn: Callable[[str], None]) -> StoredVerdicts:
    """Read JSON lines {"query": id, "passage": id, "relevant": true or false}; other keys are left alone.

    Verdicts on queries that are not trained on (those of another split) are counted through ``warn``. Raises
    InputError naming file and line for a line of another form, an unknown passage, and a verdict that contradicts an
    earlier line.
    """
    query_rows = {name: row for row, name in enumerate(queries.ids)}
    relevant: dict[int, bool] = {}
    elsewhere = 0
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        record = _record(line, where)
        passage = corpus.row_of(record["passage"])
        if passage is None:
            raise InputError(f"{where}: passage {record['passage']!r} is not in the corpus; remove the line")
        query = query_rows.get(record["query"])
        if query is None:
            elsewhere += 1
            continue
        if relevant.setdefault(query * len(corpus) + passage, record["relevant"]) != record["relevant"]:
            raise InputError(f"{where}: contradicts an earlier line on the same pair; keep one of them")
    if elsewhere:
        warn(f"{path}: {elsewhere} verdicts are on queries that are not trained on, and change nothing")
    keys = np.array(sorted(relevant), np.int64)
    values = np.array([relevant[key] for key in keys.tolist()], np.bool_)
    return StoredVerdicts(keys, values, len(corpus), sha256_file(path))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"[negatives] verdicts: {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"[negatives] verdicts: {path} is not UTF-8 ({error})") from error


def _record(line: str, where: str) -> dict[str, Any]:
    wanted = {"query": str, "passage": str, "relevant": bool}
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error})") from error
    if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in wanted.items()):
        raise InputError(f'{where}: write {{"query": "id", "passage": "id", "relevant": true or false}}')
    found: dict[str, Any] = record
    return found
