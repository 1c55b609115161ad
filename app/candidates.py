"""What is to be reranked: the hits of a TREC run, or those that a generation finds first.

Does not know rankers.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from app.reranking import Candidates
from app.snapshot import Snapshot
from retriever.beir import find_file, read_queries
from retriever.counting import counted, the_first
from retriever.data import Corpus, QuerySet
from retriever.durable import sha256_file
from retriever.errors import InputError
from retriever.ingest import ingest_corpus
from retriever.protocols import FloatArray, IntArray
from retriever.store import Store
from retriever.trec import read_run


def candidates_of_generation(snapshot: Snapshot, queries: QuerySet, depth: int) -> Candidates:
    """Return the ``depth`` hits that the index of ``snapshot`` finds first for each query."""
    vectors = snapshot.encoder.encode_queries(queries.texts)
    hits, _ = snapshot.searcher.search(vectors, min(depth, len(snapshot.corpus)))
    return Candidates(queries.ids, queries.texts, snapshot.corpus, hits)


def candidates_of_run(run: Path, data: Path, corpus: Corpus) -> Candidates:
    """Return all hits of the TREC run ``run``, whose queries and passages the BEIR folder ``data`` holds.

    Raises InputError for a run without hits and for an unknown query or passage.
    """
    ranked = read_run(run)
    if not ranked:
        raise InputError(f"{run}: no hits to rerank")
    texts = {name: text for _, name, text in read_queries(data) if name in ranked}
    unknown = [name for name in ranked if name not in texts]
    if unknown:
        queries = counted(len(unknown), "query is", "queries are")
        raise InputError(f"{run}: {queries} not in {find_file(data, 'queries.jsonl')}: {the_first(unknown)}")
    ids = list(ranked)
    hits, _ = hits_of_run(ranked, ids, corpus, max(map(len, ranked.values())), f"{run} ({data})")
    return Candidates(ids, [texts[name] for name in ids], corpus, hits)


def hits_of_run(
    ranked: Mapping[str, Sequence[tuple[str, float]]], ids: Sequence[str], corpus: Corpus, depth: int, place: str
) -> tuple[IntArray, FloatArray]:
    """Return rows int32 and scores float32 [len(ids), depth] of the first hits of a run, −1 and −inf in pads.

    Raises InputError, which ``place`` begins, for a passage that ``corpus`` does not hold.
    """
    hits = np.full((len(ids), depth), -1, np.int32)
    scores = np.full((len(ids), depth), -np.inf, np.float32)
    for query, name in enumerate(ids):
        for at, (passage, score) in enumerate(ranked.get(name, [])[:depth]):
            row = corpus.row_of(passage)
            if row is None:
                raise InputError(f"{place}: query {name!r} has passage {passage!r}, which the corpus does not hold")
            hits[query, at], scores[query, at] = row, score
    return hits, scores


@contextmanager
def temporary_corpus(data: Path, skipping: Callable[[str], None] | None = None) -> Iterator[Corpus]:
    """Give the corpus of the BEIR folder ``data`` for the occasion; ``skipping`` as in ``ingest_corpus``."""
    with tempfile.TemporaryDirectory(prefix="hone-corpus-") as folder:
        yield Corpus(ingest_corpus(Store(Path(folder) / "store", create=True), data, skipping=skipping))


def check_same_corpus(store: Store, snapshot: Snapshot, data: Path) -> None:
    """Raise InputError if ``snapshot`` holds another corpus than ``data``."""
    source = store.corpora.at(snapshot.corpus.number).facts["source_sha256"]
    if sha256_file(find_file(data, "corpus.jsonl")) != source:
        raise InputError(f"{data}: not the corpus that generation {snapshot.generation.number} holds; index it first")
