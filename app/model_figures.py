"""One figure a query of any model on a split, by exact search: what flips, merges and exports are measured by.

Does not know generations, nor which models are compared.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.options import warn
from indexer.encode import encode_corpus
from indexer.evaluation import evaluate
from indexer.exact import exact_search
from indexer.shards import Vectors
from retriever.data import Corpus, QuerySet
from retriever.ingest import ingest_corpus, load_query_set
from retriever.protocols import Encoder, FloatArray, IntArray, Progress
from retriever.store import Store


@dataclass(frozen=True)
class Split:
    """The queries of a split with the corpus that they are judged over; ``cache`` takes the vectors."""

    corpus: Corpus
    queries: QuerySet
    cache: Path


@contextmanager
def open_split(data: Path, split: str, *, skip_missing: bool = False) -> Iterator[Split]:
    """Give ``split`` of the BEIR folder ``data``, ingested for the occasion. Raises InputError for what is amiss."""
    with tempfile.TemporaryDirectory(prefix="hone-split-") as folder:
        store = Store(Path(folder) / "store", create=True)
        corpus = Corpus(ingest_corpus(store, data, skipping=warn if skip_missing else None))
        queries = load_query_set(data, split, corpus, skip_missing=skip_missing, warn=warn)
        yield Split(corpus, queries, store.embeddings)


def model_figures(split: Split, encoder: Encoder, measure: str, progress: Progress) -> FloatArray:
    """Return the figure float32 [Q] of each query by ``measure`` (ir-measures' spelling), all passages compared.

    Raises InputError for an unknown measure.
    """
    vectors = encode_corpus(encoder, split.corpus, split.cache, progress, warn)
    return vector_figures(split.queries, encoder.encode_queries(split.queries.texts), vectors, measure)


def vector_figures(queries: QuerySet, query_vectors: FloatArray, vectors: Vectors, measure: str) -> FloatArray:
    """Return the figure float32 [Q] of each query by ``measure``, for vectors float32 [Q, dim] and a corpus's."""

    def search(asked: FloatArray, depth: int) -> tuple[IntArray, FloatArray]:
        return exact_search(asked, vectors, depth)

    evaluation = evaluate(queries, query_vectors, vectors, search, [measure], auc=False)
    return evaluation.per_query[measure].astype(np.float32)
