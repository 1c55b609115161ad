"""Exact search by inner product over all vectors, in blocks: the reference that indexes are measured against.

Does not know FAISS, encoders or judgements.
"""

from collections.abc import Callable, Iterator

import numpy as np

from indexer.shards import Vectors
from retriever.errors import InputError
from retriever.protocols import BoolArray, FloatArray, IntArray

QUERY_CHUNK = 512
"""Queries that are scored at once: 512 × 4,096 float32 scores are 8 MiB."""

Search = Callable[[FloatArray, int], tuple[IntArray, FloatArray]]
"""(queries float32 [q, dim], depth) → rows int32 [q, depth] best first, −1 pads; scores float32, −inf in pads."""


def score_blocks(queries: FloatArray, vectors: Vectors) -> Iterator[tuple[int, int, FloatArray]]:
    """Yield (first query, first row, scores float32 [at most 512, block rows]): every pair once, rows ascending.

    Raises InputError if ``queries`` have other dimensions or are not finite.
    """
    for first_query, rows, scores in _scored(queries, vectors, None):
        yield first_query, int(rows[0]), scores


def exact_search(
    queries: FloatArray, vectors: Vectors, depth: int, allowed: BoolArray | None = None
) -> tuple[IntArray, FloatArray]:
    """Return the best rows int32 [q, depth], best first, and their scores float32; equal scores: lower row first.

    ``allowed`` bool [rows] leaves out the others. Where fewer than ``depth`` rows are there, rows are padded by −1 and
    scores by −inf. Memory is the result, one shard and one chunk of scores. Raises InputError like score_blocks, and
    for a depth below 1.
    """
    if depth < 1:
        raise InputError(f"depth {depth}: search for at least one passage")
    best_rows = np.full((len(queries), depth), -1, np.int32)
    best_scores = np.full((len(queries), depth), -np.inf, np.float32)
    for first, rows, scores in _scored(queries, vectors, allowed):
        here = slice(first, first + len(scores))
        _merge(best_rows[here], best_scores[here], rows, scores)
    return best_rows, best_scores


def check_queries(queries: FloatArray, dimensions: int) -> None:
    """Raise InputError if ``queries`` are not [n, dimensions], or not finite: such a vector is near to nothing."""
    if queries.ndim != 2 or queries.shape[1] != dimensions:
        raise InputError(f"queries {queries.shape} where [n, {dimensions}] belongs; use the same model")
    if not np.isfinite(queries).all():
        raise InputError("a query's vector is not finite; the model that made it has diverged")


def _scored(
    queries: FloatArray, vectors: Vectors, allowed: BoolArray | None
) -> Iterator[tuple[int, IntArray, FloatArray]]:
    check_queries(queries, vectors.dimensions)
    for first_row, block in vectors.blocks():
        rows = np.arange(first_row, first_row + len(block), dtype=np.int32)
        if allowed is not None:
            wanted = allowed[first_row : first_row + len(block)]
            rows, block = rows[wanted], block[wanted]
        for first_query in range(0, len(queries) if len(rows) else 0, QUERY_CHUNK):
            yield first_query, rows, queries[first_query : first_query + QUERY_CHUNK] @ block.T


def _merge(best_rows: IntArray, best_scores: FloatArray, rows: IntArray, scores: FloatArray) -> None:
    """Let the scores of higher rows than any so far into the best of each query, in place."""
    queries, depth = best_rows.shape
    entering = scores > best_scores[:, -1:]  # an equal score loses to the lower row that is already there
    if entering.sum(axis=1).max() > depth:
        place = scores.shape[1] - depth
        entering &= scores >= np.partition(scores, place, axis=1)[:, place, None]
    query, column = np.divmod(np.flatnonzero(entering), scores.shape[1])  # over a matrix nonzero takes 20 × as long
    if not len(query):
        return
    every_query = np.concatenate([np.repeat(np.arange(queries), depth), query])
    every_row = np.concatenate([best_rows.ravel(), rows[column]])
    every_score = np.concatenate([best_scores.ravel(), scores[query, column]])
    # The sort is stable and rows arrive ascending, so that equal scores stay in the order of their rows.
    order = np.lexsort((-every_score, every_query))
    counts = depth + np.bincount(query, minlength=queries)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = order[rank < depth]
    best_rows[...] = every_row[kept].reshape(queries, depth)
    best_scores[...] = every_score[kept].reshape(queries, depth)
