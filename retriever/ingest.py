"""From a BEIR folder to a corpus artifact and the judged queries of its splits.

Does not know encoders, indexes or training.
"""

import re
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retriever.artifacts import Artifact, Draft
from retriever.beir import PassageLine, QueryLine, find_file, pass_over, read_corpus, read_query_lines
from retriever.carving import places
from retriever.counting import counted, the_first
from retriever.data import BLOCK_ROWS, Corpus, QuerySet, duplicate_hash, hash64, passage_text
from retriever.durable import sha256_file
from retriever.errors import InputError, StoreError
from retriever.store import Store
from retriever.trec import read_qrels

SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "title", "text", "metadata")])
WITHOUT = re.compile(r"(.+):-([^:]+:[^:]+)")
"""A split without the queries of a carved one: "other:-train:0.1"."""


def ingest_corpus(
    store: Store,
    folder: Path,
    accept: Callable[[Corpus], None] | None = None,
    skipping: Callable[[str], None] | None = None,
) -> Artifact:
    """Publish the corpus of the BEIR folder ``folder``, or return the store's newest if it holds the same file.

    Where another process ingests, waits for it and looks again.

    ``accept`` sees the corpus before it is published (as number −1): what it raises leaves the store as it was.
    With ``skipping`` passages without a text are left out, and counted through it.
    Raises InputError naming file and line for a bad line, a duplicate id or an empty corpus.
    """
    accept = accept or (lambda corpus: None)
    source = sha256_file(find_file(folder, "corpus.jsonl"))
    newest = _ingested(store, source)
    if newest is None:
        with store.corpora.writer(wait=True):
            newest = _ingested(store, source)
            if newest is None:
                return _published(store, folder, source, accept, skipping)
    if left_out := newest.facts.get("left_out"):
        if skipping is None:
            raise InputError(f"{folder / 'corpus.jsonl'}: {left_out}; mend them or pass --skip-missing")
        skipping(f"{folder / 'corpus.jsonl'}: {left_out}; skipped")
    accept(Corpus(newest))
    return newest


def _published(
    store: Store,
    folder: Path,
    source: str,
    accept: Callable[[Corpus], None],
    skipping: Callable[[str], None] | None,
) -> Artifact:
    with store.corpora.stage(parents={}) as draft:
        rows = _write_passages(draft, folder, skipping)
        draft.facts.update(rows=rows, source_sha256=source)
        files = {"passages.arrow": {"sha256": sha256_file(draft.path / "passages.arrow")}}
        accept(Corpus(Artifact("corpora", -1, draft.path, {"facts": draft.facts, "files": files})))
    return store.corpora.at(draft.number)


def _ingested(store: Store, source: str) -> Artifact | None:
    """Return the newest corpus if it is intact and of the file ``source``: a damaged one is ingested anew."""
    with suppress(StoreError):
        newest = store.corpora.get()
        if newest is not None and newest.facts["source_sha256"] == source:
            newest.verify()
            return newest
    return None


def _write_passages(draft: Draft, folder: Path, skipping: Callable[[str], None] | None) -> int:
    path = find_file(folder, "corpus.jsonl")
    id_hash, text_hash, lines = array("Q"), array("Q"), array("Q")
    block: list[PassageLine] = []
    empty: list[str] = []

    def on_empty(number: int, passage_id: str) -> None:
        if skipping is None:
            raise InputError(
                f"{path}:{number}: passage {passage_id!r} has an empty text; fill it, remove it, or pass "
                "--skip-missing to go on without such passages"
            )
        empty.append(f"{passage_id} (line {number})")

    with pa.OSFile(str(draft.path / "passages.arrow"), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for line in read_corpus(folder, on_empty):
            id_hash.append(hash64(line.id))
            text_hash.append(duplicate_hash(passage_text(line.title, line.text)))
            lines.append(line.number)
            block.append(line)
            if len(block) == BLOCK_ROWS:
                writer.write_batch(_record_batch(block))
                block.clear()
        if block:
            writer.write_batch(_record_batch(block))
    if not lines:
        raise InputError(f"{path}: no passages; a corpus needs at least one line")
    if empty and skipping is not None:
        left_out = f"{counted(len(empty), 'passage has', 'passages have')} an empty text: {the_first(empty)}"
        draft.facts["left_out"] = left_out  # for who reads the same file later
        skipping(f"{path}: {left_out}; skipped")
    ids = np.frombuffer(id_hash, np.uint64)
    _refuse_duplicates(folder, ids, np.frombuffer(lines, np.uint64))
    np.save(draft.path / "id_hash.npy", ids)
    np.save(draft.path / "text_hash.npy", np.frombuffer(text_hash, np.uint64))
    return len(lines)


def _record_batch(block: Sequence[PassageLine]) -> pa.RecordBatch:
    columns = [[getattr(line, name) for line in block] for name in SCHEMA.names]
    return pa.record_batch([pa.array(column, pa.string()) for column in columns], schema=SCHEMA)


def _refuse_duplicates(folder: Path, ids: NDArray[np.uint64], lines: NDArray[np.uint64]) -> None:
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if not len(twice):
        return
    suspects = set(np.unique(ids[order][twice]).tolist())
    seen: dict[str, int] = {}
    for line in read_corpus(folder, pass_over):
        if hash64(line.id) in suspects:
            if line.id in seen:
                path = find_file(folder, "corpus.jsonl")
                raise InputError(f"{path}:{line.number}: duplicate id {line.id!r}, first on line {seen[line.id]}")
            seen[line.id] = line.number


def load_query_set(
    folder: Path, split: str, corpus: Corpus, *, skip_missing: bool = False, warn: Callable[[str], None]
) -> QuerySet:
    """Read the queries of ``split`` that have judgements, in the order of queries.jsonl.

    ``split`` is a name, or "train:0.1": the tenth of train (by its positive passages) that is carved off for
    validation, or "train:-0.1": what remains of train, or "other:-train:0.1": the queries of other that are not in that
    tenth. Raises InputError for a qrel to an unknown query or passage (with ``skip_missing`` these are counted through
    ``warn`` instead) and for a split without a relevant pair.
    """
    name = split.partition(":")[0]
    judged = _judged(folder, split, corpus, skip_missing, warn)
    kept: list[QueryLine] = []
    seen: set[str] = set()
    for line in read_query_lines(folder):
        if line.id in seen:
            raise InputError(f"{find_file(folder, 'queries.jsonl')}:{line.number}: duplicate id {line.id!r}")
        seen.add(line.id)
        if line.id in judged:
            kept.append(line)
    _report_unknown(folder, name, [q for q in judged if q not in seen], "query", skip_missing, warn)
    judgements = [judged[line.id] for line in kept]
    if not any(grade > 0 for of_query in judgements for grade in of_query.values()):
        more = "; take a larger share" if ":" in split else ""
        raise InputError(f"{folder}/qrels/{name}.tsv: split {split!r} has no relevant (query, passage) pair{more}")
    metadata = [line.metadata for line in kept]
    ids, texts = [line.id for line in kept], [line.text for line in kept]
    return QuerySet(split, ids, texts, judgements, metadata if any(metadata) else ())


def _judged(
    folder: Path, split: str, corpus: Corpus, skip_missing: bool, warn: Callable[[str], None]
) -> dict[str, dict[int, int]]:
    """Return the relevance by corpus row of each query id of ``split``."""
    if without := WITHOUT.fullmatch(split):
        held_out = _judged(folder, without[2], corpus, True, lambda _: None)  # who loads it is told what is missing
        of_rest = _judged(folder, without[1], corpus, skip_missing, warn)
        return {query_id: rows for query_id, rows in of_rest.items() if query_id not in held_out}
    name, _, carved = split.partition(":")
    judged = _read_judgements(folder, name, corpus, skip_missing, warn)
    return _carve(judged, _fraction(split, carved)) if carved else judged


def _read_judgements(
    folder: Path, name: str, corpus: Corpus, skip_missing: bool, warn: Callable[[str], None]
) -> dict[str, dict[int, int]]:
    judged: dict[str, dict[int, int]] = {}
    unknown, contrary = [], []
    for line, query_id, passage_id, relevance in read_qrels(find_file(folder, f"qrels/{name}.tsv")):
        row = corpus.row_of(passage_id)
        if row is None:
            unknown.append(f"{passage_id} (line {line})")
            continue
        of_query = judged.setdefault(query_id, {})
        if of_query.get(row, relevance) != relevance:
            contrary.append(f"{query_id} {passage_id} (line {line})")
        of_query[row] = relevance
    if contrary:
        contradict = counted(len(contrary), "judgement contradicts", "judgements contradict")
        which = f"an earlier one of the same pair: {the_first(contrary)}"
        warn(f"{folder}/qrels/{name}.tsv: {contradict} {which}; the last of a pair counts")
    _report_unknown(folder, name, unknown, "passage", skip_missing, warn)
    return judged


def _report_unknown(
    folder: Path, name: str, unknown: list[str], what: str, skip_missing: bool, warn: Callable[[str], None]
) -> None:
    if not unknown:
        return
    judgements = counted(len(unknown), "judgement names", "judgements name")
    message = f"{folder}/qrels/{name}.tsv: {judgements} an unknown {what}: {the_first(unknown)}"
    if not skip_missing:
        raise InputError(f"{message}; mend them or pass --skip-missing to go on without")
    warn(f"{message}; skipped")


def _fraction(split: str, carved: str) -> float:
    try:
        fraction = float(carved)
    except ValueError:
        fraction = 0.0
    if not 0 < abs(fraction) < 1:
        raise InputError(f"split {split!r}: write a name, or name:0.1 for a carved tenth, name:-0.1 for the rest")
    return fraction


def _carve(judged: dict[str, dict[int, int]], fraction: float) -> dict[str, dict[int, int]]:
    """Keep the queries that ``fraction`` carves off, or, if it is negative, the others."""
    positives = {query_id: [row for row, grade in rows.items() if grade > 0] for query_id, rows in judged.items()}
    return {q: judged[q] for q, place in places(positives).items() if (place < abs(fraction)) == (fraction > 0)}
