"""Stored judgements as files for training: verdicts that a run's [negatives] respects, or qrels in BEIR's form.

Does not know where judgements come from.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.judgements import StoredJudgement, query_key, settled
from miner.verdicts import ACTIONS
from retriever.beir import pass_over, read_passages, read_query_lines
from retriever.beir_writer import QRELS_HEADER
from retriever.data import duplicate_hash, passage_text
from retriever.durable import appearing
from retriever.errors import InputError

VERDICTS, QRELS = FORMS = ("verdicts", "qrels")


@dataclass(frozen=True)
class Exported:
    """How many ``lines`` were written, of how many pairs that were judged, and how many pairs have none.

    ``unknown_queries`` are pairs whose query is not in the data set; ``unknown_passages`` those whose passage is not,
    or has another text now.
    """

    lines: int
    pairs: int
    unknown_queries: int
    unknown_passages: int


def export_judgements(judgements: Sequence[StoredJudgement], data: Path, out: Path, form: str, action: str) -> Exported:
    """Write the settled ``judgements`` on queries and passages of the data set in ``data`` to ``out``.

    ``form`` "verdicts": JSON lines as ``miner.verdicts.read_verdicts`` reads them, ``action`` beside each relevant one;
    "qrels": query-id, corpus-id, score. A judgement holds for each query and passage of the data set that has its text.
    Raises InputError if ``out`` exists, for another form or action, and for a data set that cannot be read.
    """
    if form not in FORMS:
        raise InputError(f"--format {form}: choose one of {', '.join(FORMS)}")
    if action not in ACTIONS:
        raise InputError(f"--action {action}: choose one of {', '.join(ACTIONS)}")
    if out.exists():
        raise InputError(f"{out}: exists already; choose another name")
    of_query: dict[str, list[StoredJudgement]] = {}
    for row in judgements:
        of_query.setdefault(row.query_key, []).append(row)
    passages = _passages(data, {row.pair[1] for row in judgements})
    asked, known, lines = set[str](), set[tuple[str, int]](), 0
    with appearing(out) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        if form == QRELS:
            file.write(QRELS_HEADER)
        for query in read_query_lines(data):
            keys = query_key(None, query.text), query_key(query.id, None)
            asked.update(keys)
            own = [row for key in keys for row in of_query.get(key, ())]
            known.update(row.pair for row in own if row.pair[1] in passages)
            for text_hash, grade in settled(own).items():
                for passage in passages.get(text_hash, ()):
                    file.write(_line(form, query.id, passage, grade, action))
                    lines += 1
    pairs = {row.pair for row in judgements}
    unknown = {pair for pair in pairs if pair[0] not in asked}
    return Exported(lines, len(pairs), len(unknown), len(pairs - unknown - known))


def _passages(data: Path, wanted: set[int]) -> dict[int, list[str]]:
    """Return the ids of the passages with each of the ``wanted`` hashes of texts."""
    found: dict[int, list[str]] = {}
    for _, passage, title, text in read_passages(data, pass_over):
        text_hash = duplicate_hash(passage_text(title, text))
        if text_hash in wanted:
            found.setdefault(text_hash, []).append(passage)
    return found


def _line(form: str, query: str, passage: str, grade: int, action: str) -> str:
    if form == QRELS:
        return f"{query}\t{passage}\t{grade}\n"
    verdict = {"query": query, "passage": passage, "relevant": grade > 0, "grade": grade}
    told = {"action": action} if grade > 0 else {}
    return json.dumps({**verdict, **told}, ensure_ascii=False) + "\n"
