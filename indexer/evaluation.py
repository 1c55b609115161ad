"""Measures of one query set against one set of vectors: ranked by any search, AUC over every pair.

Does not know models, indexes or where the figures go.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.exact import Search, score_blocks
from indexer.shards import Vectors
from retriever.data import QuerySet
from retriever.metrics import DEFAULT_NAMES, PooledAuc, mean, per_query
from retriever.protocols import FloatArray, IntArray

UNCUT_DEPTH = 1000
"""Depth of measures without a cutoff, as trec_eval has it."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of one query set: ``metrics`` over all queries, ``per_query`` float64 [Q] for each ranked measure.

    ``hits`` int32 [Q, depth], best first, −1 pads, and ``scores`` float32 [Q, depth] are the run behind them.
    """

    metrics: dict[str, float]
    per_query: dict[str, NDArray[np.float64]]
    hits: IntArray
    scores: FloatArray


def evaluate(
    query_set: QuerySet,
    query_vectors: FloatArray,
    vectors: Vectors,
    search: Search,
    names: Sequence[str] = DEFAULT_NAMES,
    auc: bool = True,
) -> Evaluation:
    """Search with ``query_vectors`` float32 [Q, dim] and score the hits by ``names`` (ir-measures' spelling).

    ``auc`` adds "AUC" and "separation", pooled over all query–passage pairs by exact scores; they are left out where
    they are not defined, as where every pair is relevant or none is. Raises InputError for an unknown measure.
    """
    cutoffs = [int(cut[1]) if (cut := re.search(r"@(\d+)$", name)) else UNCUT_DEPTH for name in names]
    hits, scores = search(query_vectors, max(cutoffs))
    figures = per_query(hits, query_set.judgements, names)
    metrics = mean(figures)
    if auc:
        pooled = pooled_pairs(query_set, query_vectors, vectors)
        found = {"AUC": pooled.value(), "separation": pooled.separation()}
        metrics |= {name: value for name, value in found.items() if not math.isnan(value)}
    return Evaluation(metrics, figures, hits, scores)


def pooled_pairs(query_set: QuerySet, query_vectors: FloatArray, vectors: Vectors) -> PooledAuc:
    """Return the scores of all pairs as PooledAuc has them: a pair is positive if its relevance is above 0.

    Scores are computed twice, by blocks, so that a positive and a negative
    with equal vectors tie to the last bit and no more than one block of scores is in memory.
    """
    pairs = [(query, row) for query in range(len(query_set)) for row in query_set.positives(query).tolist()]
    queries, rows = np.array(pairs, np.int64).reshape(-1, 2).T

    def inside(first_query: int, first_row: int, scores: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        query, row = queries - first_query, rows - first_row
        here = (query >= 0) & (query < scores.shape[0]) & (row >= 0) & (row < scores.shape[1])
        return query[here], row[here]

    positives = [np.empty(0, np.float32)]
    positives += [scores[inside(q, r, scores)] for q, r, scores in score_blocks(query_vectors, vectors)]
    pooled = PooledAuc(np.concatenate(positives))
    for first_query, first_row, scores in score_blocks(query_vectors, vectors):
        query, row = inside(first_query, first_row, scores)
        pooled.add_negatives(np.delete(scores, query * scores.shape[1] + row))
    return pooled
