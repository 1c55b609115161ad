"""Verdicts of judges on pairs of query and passage, read from a file and respected by training and every refresh.

Does not know who judged, nor where candidates come from.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.counting import counted
from retriever.data import Corpus, QuerySet
from retriever.durable import sha256_file, write_atomic
from retriever.errors import InputError
from retriever.negatives import Verdict
from retriever.protocols import BoolArray, IntArray

DROP_NEGATIVE, RELABEL, DROP_EXAMPLE = ACTIONS = ("drop_negative", "relabel", "drop_example")
"""What a passage that is judged relevant becomes: no negative; a positive to learn from; or its query is left out."""
WRITTEN = "written"


@dataclass(frozen=True)
class StoredVerdicts:
    """``keys`` int64 [n] ascending, query row × ``passages`` + passage row; ``relevant`` bool [n]; the file's digest.

    ``passages`` is the number of rows of the corpus. ``actions`` uint8 [n] are places in ACTIONS, read where a pair is
    relevant; empty: DROP_NEGATIVE for all.
    """

    keys: NDArray[np.int64]
    relevant: BoolArray
    passages: int
    sha256: str
    actions: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    def respected(self, verdicts: NDArray[np.uint8], query_rows: IntArray, rows: IntArray) -> NDArray[np.uint8]:
        """Return ``verdicts`` uint8 [q, D] of the candidates ``rows`` int32 [q, D] of ``query_rows``, as judged.

        See ``as_judged``.
        """
        if not len(self.keys):
            return verdicts
        wanted = query_rows.astype(np.int64)[:, None] * self.passages + rows
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        judged = (self.keys[places] == wanted) & (rows >= 0)
        return as_judged(verdicts, judged, self.relevant[places])

    def relevant_to(self, query_row: int) -> IntArray:
        """Return the passage rows int32 [n], ascending, judged relevant for a query: in a batch, too, no negatives."""
        start, end = np.searchsorted(self.keys, (query_row * self.passages, (query_row + 1) * self.passages))
        return (self.keys[start:end][self.relevant[start:end]] - query_row * self.passages).astype(np.int32)

    def acted_on(self, action: str) -> NDArray[np.int64]:
        """Return the keys int64 [n] of the pairs that became what ``action`` says."""
        if not len(self.actions):
            return self.keys[self.relevant & (action == DROP_NEGATIVE)]
        found: NDArray[np.int64] = self.keys[self.relevant & (self.actions == ACTIONS.index(action))]
        return found


def as_judged(verdicts: NDArray[np.uint8], judged: BoolArray, relevant: BoolArray) -> NDArray[np.uint8]:
    """Return ``verdicts`` uint8, changed where ``judged``: to what ``relevant`` says; all of one shape.

    A judged candidate becomes JUDGED_RELEVANT or JUDGED_IRRELEVANT, whether or not a filter refused it. Known positives
    and duplicates stay what they are: no judge makes a negative of them.
    """
    judged = judged & np.isin(verdicts, (Verdict.ELIGIBLE, Verdict.FILTERED))
    by_judge = np.where(relevant, Verdict.JUDGED_RELEVANT, Verdict.JUDGED_IRRELEVANT)
    return np.where(judged, by_judge.astype(np.uint8), verdicts)


def read_verdicts(
    path: Path, corpus: Corpus, queries: QuerySet, warn: Callable[[str], None], on_relevant: str = WRITTEN
) -> StoredVerdicts:
    """Read JSON lines {"query": id, "passage": id, "relevant": true or false}, perhaps with an "action" of ACTIONS.

    Other keys are left alone. ``on_relevant``: an action for every relevant pair, in place of the one that is WRITTEN;
    a line without one has DROP_NEGATIVE. Verdicts on queries that are not trained on (those of another split) are
    counted through ``warn``. Copies of a judged passage's text that no line names share its verdict, as negatives only:
    they become no positives. Raises InputError naming file and line for a line of another form, an unknown passage, and
    a line that contradicts an earlier one.
    """
    query_rows = {name: row for row, name in enumerate(queries.ids)}
    found: dict[int, tuple[bool, int]] = {}
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
        action = record.get("action", DROP_NEGATIVE) if on_relevant == WRITTEN else on_relevant
        verdict = (record["relevant"], ACTIONS.index(action) if record["relevant"] else 0)
        if found.setdefault(query * len(corpus) + passage, verdict) != verdict:
            raise InputError(f"{where}: contradicts an earlier line on the same pair; keep one of them")
    if elsewhere:
        verdicts = counted(elsewhere, "verdict changes", "verdicts change")
        warn(f"{path}: {verdicts} nothing, being on queries that are not trained on")
    _spread(found, corpus)
    keys = np.array(sorted(found), np.int64)
    relevant = np.array([found[key][0] for key in keys.tolist()], np.bool_)
    actions = np.array([found[key][1] for key in keys.tolist()], np.uint8)
    return StoredVerdicts(keys, relevant, len(corpus), sha256_file(path), actions)


def _spread(found: dict[int, tuple[bool, int]], corpus: Corpus) -> None:
    """Add to ``found`` what it says of a passage for the copies of its text."""
    hashes = corpus.text_hash
    judged = np.unique(np.fromiter(found, np.int64, len(found)) % len(corpus))
    alike = np.flatnonzero(np.isin(hashes, hashes[judged]))
    if len(alike) == len(judged):
        return
    copies: dict[int, list[int]] = {}
    for row in alike.tolist():
        copies.setdefault(int(hashes[row]), []).append(row)
    for key, (relevant, _) in sorted(
        found.items(), key=lambda item: not item[1][0]
    ):  # of copies that disagree, relevant
        query, passage = divmod(key, len(corpus))
        for row in copies[int(hashes[passage])]:
            found.setdefault(query * len(corpus) + row, (relevant, ACTIONS.index(DROP_NEGATIVE)))


def replace_verdicts(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``; another file there is kept beside it, for negative sets that were mined with it."""
    if path.exists() and (old := path.read_bytes()) != data:
        write_atomic(_kept(path, sha256_file(path)), old)
    write_atomic(path, data)


def verdicts_of_then(path: Path, sha256: str) -> Path:
    """Return where the verdicts with this digest are: ``path``, or what was kept of it; ``path`` if they are gone."""
    found = (one for one in (path, _kept(path, sha256)) if one.exists() and sha256_file(one) == sha256)
    return next(found, path)


def _kept(path: Path, sha256: str) -> Path:
    return path.with_name(f"{path.stem}-{sha256[:8]}{path.suffix}")


def corrected(
    queries: QuerySet, judged: StoredVerdicts, warn: Callable[[str], None]
) -> tuple[QuerySet, StoredVerdicts]:
    """Return ``queries`` as the actions of ``judged`` leave them, and the same verdicts on the rows of those.

    A relabelled passage is a positive of relevance 1, unless the qrels judged it themselves: they outrank any verdict,
    and ``warn`` counts the verdicts that they overrule. Raises InputError if no query is left.
    """
    if not len(judged.acted_on(DROP_EXAMPLE)) and not len(judged.acted_on(RELABEL)):
        return queries, judged
    dropped = np.unique(judged.acted_on(DROP_EXAMPLE) // judged.passages)
    judgements = [dict(of_query) for of_query in queries.judgements]
    overruled = 0
    for key in judged.acted_on(RELABEL).tolist():
        query, passage = divmod(key, judged.passages)
        overruled += judgements[query].setdefault(passage, 1) <= 0
    if overruled:
        verdicts = counted(overruled, "verdict changes", "verdicts change")
        warn(f"{verdicts} nothing, as the qrels call irrelevant what would become a positive")
    kept = np.setdiff1d(np.arange(len(queries)), dropped, assume_unique=True)
    if not len(kept):
        raise InputError("[negatives] verdicts drop every training query; judge less strictly or write another action")
    if len(dropped):
        warn(f"{counted(len(dropped), 'query is', 'queries are')} left out of training by verdicts")
    query_set = QuerySet(queries.split, queries.ids, queries.texts, judgements).subset(kept.astype(np.int32))
    rows = judged.keys // judged.passages
    stays = np.isin(rows, kept)
    moved = np.searchsorted(kept, rows[stays]) * judged.passages + judged.keys[stays] % judged.passages
    actions = judged.actions[stays] if len(judged.actions) else judged.actions
    return query_set, StoredVerdicts(moved, judged.relevant[stays], judged.passages, judged.sha256, actions)


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
    if record.get("action", DROP_NEGATIVE) not in ACTIONS:
        raise InputError(f"{where}: action {record['action']!r}; choose from {', '.join(ACTIONS)}")
    found: dict[str, Any] = record
    return found
