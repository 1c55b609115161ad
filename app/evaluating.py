"""Figures of a model or a generation on one split: metrics, the run as a TREC file, and a report per query.

Does not know how metrics are computed.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from app.candidates import check_same_corpus, hits_of_run, temporary_corpus
from app.indexing import index_data
from app.opening import ENCODER_ALONE, encoder_opener, reranking_openers, warn_of_cuts
from app.options import warn
from app.progress import Report
from app.reranking import Candidates, Reranked, rerank
from app.snapshot import Snapshot, load_snapshot
from indexer.encode import encode_corpus
from indexer.evaluation import Evaluation, evaluate
from indexer.exact import exact_search
from indexer.factory import IndexConfig
from indexer.shards import Vectors
from retriever.counting import counted
from retriever.data import Corpus, QuerySet
from retriever.durable import write_atomic
from retriever.encoder import ModelConfig, create_encoder
from retriever.errors import InputError
from retriever.ingest import ingest_corpus, load_query_set
from retriever.metrics import mean, per_query
from retriever.protocols import Encoder, FloatArray, IntArray, Progress, TokenRanker, silent
from retriever.store import Store
from retriever.trec import read_run, write_run

METRICS = ("nDCG@10", "RR@10", "R@100")
RUN_DEPTH = 100


@dataclass(frozen=True)
class Reranking:
    """A wish to rerank the first ``depth`` hits by ``ranker``, None: by that of the generation."""

    depth: int
    ranker: TokenRanker | None = None
    progress: Progress = silent


@dataclass(frozen=True)
class Evaluated:
    """An evaluation with the queries and the corpus that its rows refer to.

    Where the hits were reranked, ``evaluation`` is of the new order and ``before`` of the old one.
    """

    evaluation: Evaluation
    queries: QuerySet
    corpus: Corpus
    generation: int | None
    before: Evaluation | None = None
    reranked: Reranked | None = None

    def write_run(self, path: Path) -> None:
        """Write the hits as a TREC run, 100 a query or as many as were reranked."""
        write_hits(path, self.queries.ids, self.corpus, self.evaluation.hits, self.evaluation.scores)

    def write_report(self, path: Path) -> None:
        """Write a JSON line a query: its figures, its relevant passages with their ranks, its first hits."""
        lines = [json.dumps(self._query_report(query), ensure_ascii=False) for query in range(len(self.queries))]
        write_atomic(path, ("\n".join(lines) + "\n").encode())

    def _query_report(self, query: int) -> dict[str, Any]:
        rows = self.evaluation.hits[query].tolist()
        relevant = self.queries.positives(query).tolist()
        before = {} if self.before is None else {"before": _figures(self.before, query)}
        return {
            "query": self.queries.ids[query],
            "text": self.queries.texts[query],
            **_figures(self.evaluation, query),
            **before,
            "relevant": {self.corpus.id(row): rows.index(row) + 1 if row in rows else None for row in relevant},
            "hits": [self.corpus.id(row) for row in rows[:10] if row >= 0],
        }


def _figures(evaluation: Evaluation, query: int) -> dict[str, float]:
    return {name: round(float(values[query]), 6) for name, values in evaluation.per_query.items()}


def write_hits(path: Path, ids: Sequence[str], corpus: Corpus, hits: IntArray, scores: FloatArray) -> int:
    """Write the hits int32 [Q, D] of the queries ``ids`` as a TREC run; return the number of lines."""

    def ranked(query: int) -> Iterator[tuple[str, float]]:
        for row, score in zip(hits[query].tolist(), scores[query].tolist(), strict=True):
            if row >= 0:
                yield corpus.id(row), score

    return write_run(path, ((name, ranked(query)) for query, name in enumerate(ids)))


def rerank_evaluated(done: Evaluated, ranker: TokenRanker, wish: Reranking) -> Evaluated:
    """Return ``done`` with its hits reranked, and the figures of the new order beside those of the old one.

    AUC and separation are left out: the ranker does not score all pairs.
    """
    queries, before = done.queries, done.evaluation
    candidates = Candidates(queries.ids, queries.texts, done.corpus, before.hits)
    again = rerank(ranker, candidates, wish.depth, wish.progress)
    figures = per_query(again.hits, queries.judgements, list(before.per_query))
    evaluation = Evaluation(mean(figures), figures, again.hits, again.scores)
    return replace(done, evaluation=evaluation, before=before, reranked=again)


def measures(wish: Reranking | None) -> tuple[str, ...]:
    """Return the measures: where more is reranked than R@100 sees, also the recall of all that is."""
    deep = wish is not None and wish.depth > RUN_DEPTH
    return (*METRICS, f"R@{wish.depth}") if deep and wish is not None else METRICS


def evaluate_snapshot(
    snapshot: Snapshot, queries: QuerySet, *, exact: bool, names: Sequence[str] = METRICS
) -> Evaluation:
    """Return the figures of ``queries`` on a loaded generation, by its index or by exact search."""
    vectors = snapshot.encoder.encode_queries(queries.texts)
    search = partial(_exact_in, snapshot.vectors) if exact else snapshot.searcher.search
    return evaluate(queries, vectors, snapshot.vectors, search, names)


def evaluate_exactly(store: Store, pointer: str, corpus: Corpus, queries: QuerySet, progress: Progress) -> Evaluation:
    """Encode the corpus in float32 with the weights of the generation that ``pointer`` names; search exactly.

    Raises InputError if nothing has that name.
    """
    generation = store.generations.intact(pointer, warn)
    if generation is None:
        raise InputError(f"{store.generations.folder}: no generation is named {pointer}")
    encoder = encoder_opener(IndexConfig(engine="torch", precision="fp32"))(generation)
    return evaluate_vectors(encoder, encode_corpus(encoder, corpus, store.embeddings, progress, warn), queries)


def evaluate_vectors(
    encoder: Encoder, vectors: Vectors, queries: QuerySet, names: Sequence[str] = METRICS
) -> Evaluation:
    """Return the figures of ``queries`` by exact search over ``vectors``, those of the corpus by ``encoder``."""
    return evaluate(queries, encoder.encode_queries(queries.texts), vectors, partial(_exact_in, vectors), names)


def _exact_in(vectors: Vectors, queries: FloatArray, depth: int) -> tuple[IntArray, FloatArray]:
    return exact_search(queries, vectors, depth)


@contextmanager
def indexed_model(
    data: Path, split: str, model: str, config: IndexConfig, report: Report, *, skip_missing: bool = False
) -> Iterator[Store]:
    """Give a temporary store that holds a generation of ``data`` encoded by ``model`` as it is.

    Raises InputError before anything is encoded if ``split`` cannot be evaluated.
    """
    with tempfile.TemporaryDirectory(prefix="hone-evaluate-") as folder:
        root = Path(folder) / "store"
        create_encoder(ModelConfig(name=model))
        ingested = ingest_corpus(Store(root, create=True), data, skipping=_unsaid if skip_missing else None)
        load_query_set(data, split, Corpus(ingested), skip_missing=skip_missing, warn=_unsaid)
        index_data(root, data, model, asdict(config), report, skip_missing=skip_missing)
        yield Store(root)


def _unsaid(message: str) -> None:
    """Take a warning that is given again later."""


def evaluate_split(
    store: Store,
    data: Path,
    split: str,
    *,
    exact: bool,
    number: int | None = None,
    reranking: Reranking | None = None,
    skip_missing: bool = False,
) -> Evaluated:
    """Evaluate the served generation of ``store`` (or generation ``number``) on ``split`` of the BEIR folder ``data``.

    Raises InputError if the generation holds another corpus than ``data``, or no ranker where one is wanted.
    """
    given = None if reranking is None else reranking.ranker
    opened = ENCODER_ALONE if reranking is None else reranking_openers(given)
    snapshot = load_snapshot(store, opened, warn, number=number)
    check_same_corpus(store, snapshot, data)
    queries = load_query_set(data, split, snapshot.corpus, skip_missing=skip_missing, warn=warn)
    evaluation = evaluate_snapshot(snapshot, queries, exact=exact, names=measures(reranking))
    warn_of_cuts(snapshot.encoder, warn)
    done = Evaluated(evaluation, queries, snapshot.corpus, snapshot.generation.number)
    if reranking is None or snapshot.models.ranker is None:
        return done
    return rerank_evaluated(done, snapshot.models.ranker, reranking)


@contextmanager
def scored_run(
    data: Path, split: str, run: Path, *, reranking: Reranking | None = None, skip_missing: bool = False
) -> Iterator[Evaluated]:
    """Give the figures of somebody's TREC run over the BEIR folder ``data``; there is no AUC without all scores.

    A query that the run leaves out counts as one that found nothing. Raises InputError for an unknown passage.
    """
    ranked = read_run(run)
    names = measures(reranking)
    with temporary_corpus(data, warn if skip_missing else None) as corpus:
        queries = load_query_set(data, split, corpus, skip_missing=skip_missing, warn=warn)
        depth = RUN_DEPTH if reranking is None else max(RUN_DEPTH, reranking.depth)
        hits, scores = hits_of_run(ranked, queries.ids, corpus, depth, f"{run} ({data})")
        absent = sum(name not in ranked for name in queries.ids)
        if absent:
            of = f"of {len(queries)} queries"
            warn(f"{run}: {counted(absent, f'{of} has no hits and counts', f'{of} have no hits and count')} as 0")
        figures = per_query(hits, queries.judgements, names)
        done = Evaluated(Evaluation(mean(figures), figures, hits, scores), queries, corpus, None)
        ranker = None if reranking is None else reranking.ranker
        yield done if reranking is None or ranker is None else rerank_evaluated(done, ranker, reranking)


def first_hits(store: Store, query: str, top_k: int) -> list[tuple[str, float, str]]:
    """Return (id, score, text) of the first hits of ``query`` on the served generation."""
    snapshot = load_snapshot(store, ENCODER_ALONE, warn)
    rows, scores = snapshot.searcher.search(snapshot.encoder.encode_queries([query]), top_k)
    found = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
    return [(snapshot.corpus.id(row), score, snapshot.corpus.text(row)) for row, score in found if row >= 0]
