"""Figures of a model or a generation on one split: metrics, the run as a TREC file, and a report per query.

Does not know how metrics are computed.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.indexing import index_data
from app.opening import encoder_opener, openers
from app.options import warn
from app.progress import Report
from app.snapshot import Snapshot, load_snapshot
from indexer.builder import IndexConfig
from indexer.encode import encode_corpus
from indexer.evaluation import Evaluation, evaluate
from indexer.exact import exact_search
from indexer.shards import Vectors
from retriever.beir import find_file
from retriever.data import Corpus, QuerySet
from retriever.durable import sha256_file, write_atomic
from retriever.errors import InputError
from retriever.ingest import ingest_corpus, load_query_set
from retriever.metrics import mean, per_query
from retriever.protocols import FloatArray, IntArray, Progress
from retriever.store import Store
from retriever.trec import read_run, write_run

METRICS = ("nDCG@10", "RR@10", "R@100")
RUN_DEPTH = 100


@dataclass(frozen=True)
class Evaluated:
    """An evaluation with the queries and the corpus that its rows refer to."""

    evaluation: Evaluation
    queries: QuerySet
    corpus: Corpus
    generation: int | None

    def write_run(self, path: Path) -> None:
        """Write the hits as a TREC run, 100 a query."""
        hits, scores = self.evaluation.hits, self.evaluation.scores

        def ranked(query: int) -> Iterator[tuple[str, float]]:
            for row, score in zip(hits[query].tolist(), scores[query].tolist(), strict=True):
                if row >= 0:
                    yield self.corpus.id(row), score

        write_run(path, ((name, ranked(query)) for query, name in enumerate(self.queries.ids)))

    def write_report(self, path: Path) -> None:
        """Write a JSON line a query: its figures, its relevant passages with their ranks, its first hits."""
        lines = [json.dumps(self._query_report(query), ensure_ascii=False) for query in range(len(self.queries))]
        write_atomic(path, ("\n".join(lines) + "\n").encode())

    def _query_report(self, query: int) -> dict[str, Any]:
        rows = self.evaluation.hits[query].tolist()
        relevant = self.queries.positives(query).tolist()
        return {
            "query": self.queries.ids[query],
            "text": self.queries.texts[query],
            **{name: round(float(values[query]), 6) for name, values in self.evaluation.per_query.items()},
            "relevant": {self.corpus.id(row): rows.index(row) + 1 if row in rows else None for row in relevant},
            "hits": [self.corpus.id(row) for row in rows[:10] if row >= 0],
        }


def evaluate_snapshot(snapshot: Snapshot, queries: QuerySet, *, exact: bool) -> Evaluation:
    """Return the figures of ``queries`` on a loaded generation, by its index or by exact search."""
    vectors = snapshot.encoder.encode_queries(queries.texts)
    search = partial(_exact_in, snapshot.vectors) if exact else snapshot.searcher.search
    return evaluate(queries, vectors, snapshot.vectors, search, METRICS)


def evaluate_exactly(store: Store, pointer: str, corpus: Corpus, queries: QuerySet, progress: Progress) -> Evaluation:
    """Encode the corpus in float32 with the weights of the generation that ``pointer`` names; search exactly.

    Raises InputError if nothing has that name.
    """
    generation = store.generations.intact(pointer, warn)
    if generation is None:
        raise InputError(f"{store.generations.folder}: no generation is named {pointer}")
    encoder = encoder_opener(IndexConfig(engine="torch", precision="fp32"))(generation)
    vectors = encode_corpus(encoder, corpus, store.embeddings, progress, warn)
    return evaluate(queries, encoder.encode_queries(queries.texts), vectors, partial(_exact_in, vectors), METRICS)


def _exact_in(vectors: Vectors, queries: FloatArray, depth: int) -> tuple[IntArray, FloatArray]:
    return exact_search(queries, vectors, depth)


@contextmanager
def indexed_model(data: Path, model: str, config: IndexConfig, report: Report) -> Iterator[Store]:
    """Give a temporary store that holds a generation of ``data`` encoded by ``model`` as it is."""
    with tempfile.TemporaryDirectory(prefix="hone-evaluate-") as folder:
        root = Path(folder) / "store"
        index_data(root, data, model, config, report)
        yield Store(root)


def evaluate_split(
    store: Store, data: Path, split: str, *, exact: bool, number: int | None = None, skip_missing: bool = False
) -> Evaluated:
    """Evaluate the served generation of ``store`` (or generation ``number``) on ``split`` of the BEIR folder ``data``.

    Raises InputError if the generation holds another corpus than ``data``.
    """
    snapshot = load_snapshot(store, openers(), warn, number=number)
    _check_same_corpus(store, snapshot, data)
    queries = load_query_set(data, split, snapshot.corpus, skip_missing=skip_missing, warn=warn)
    evaluation = evaluate_snapshot(snapshot, queries, exact=exact)
    return Evaluated(evaluation, queries, snapshot.corpus, snapshot.generation.number)


@contextmanager
def scored_run(data: Path, split: str, run: Path, *, skip_missing: bool = False) -> Iterator[Evaluated]:
    """Give the figures of somebody's TREC run over the BEIR folder ``data``; there is no AUC without all scores.

    A query that the run leaves out counts as one that found nothing. Raises InputError for an unknown passage.
    """
    ranked = read_run(run)
    with tempfile.TemporaryDirectory(prefix="hone-evaluate-") as folder:
        corpus = Corpus(ingest_corpus(Store(Path(folder) / "store", create=True), data))
        queries = load_query_set(data, split, corpus, skip_missing=skip_missing, warn=warn)
        hits = np.full((len(queries), RUN_DEPTH), -1, np.int32)
        scores = np.full((len(queries), RUN_DEPTH), -np.inf, np.float32)
        for query, name in enumerate(queries.ids):
            for place, (passage, score) in enumerate(ranked.get(name, [])[:RUN_DEPTH]):
                row = corpus.row_of(passage)
                if row is None:
                    raise InputError(f"{run}: query {name!r} has passage {passage!r}, which {data} does not hold")
                hits[query, place], scores[query, place] = row, score
        absent = sum(name not in ranked for name in queries.ids)
        if absent:
            warn(f"{run}: {absent} of {len(queries)} queries have no hits; they count as 0")
        figures = per_query(hits, queries.judgements, METRICS)
        yield Evaluated(Evaluation(mean(figures), figures, hits, scores), queries, corpus, None)


def _check_same_corpus(store: Store, snapshot: Snapshot, data: Path) -> None:
    source = store.corpora.at(snapshot.corpus.number).facts["source_sha256"]
    if sha256_file(find_file(data, "corpus.jsonl")) != source:
        raise InputError(f"{data}: not the corpus that generation {snapshot.generation.number} holds; index it first")


def first_hits(store: Store, query: str, top_k: int) -> list[tuple[str, float, str]]:
    """Return (id, score, text) of the first hits of ``query`` on the served generation."""
    snapshot = load_snapshot(store, openers(), warn)
    rows, scores = snapshot.searcher.search(snapshot.encoder.encode_queries([query]), top_k)
    found = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
    return [(snapshot.corpus.id(row), score, snapshot.corpus.text(row)) for row, score in found if row >= 0]
