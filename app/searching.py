"""Searching a snapshot by vectors, by words or by both, among all passages or those that a request allows.

Does not know HTTP, nor how queries become vectors.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.snapshot import Snapshot
from indexer.exact import exact_search
from indexer.lexical import LexicalIndex
from retriever.errors import HoneError
from retriever.protocols import BoolArray, FloatArray, IntArray

EXACT_ROWS = 16_384
"""Up to so many allowed passages, each is compared: that takes a few milliseconds."""
MOST_FETCHED = 4096
"""From this depth on the index is not asked for what a filter would take away again."""
FUSED_DEPTH = 100
"""Candidates that hybrid search takes from either side, at least."""
RRF_K = 60
"""Of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): 1 / (60 + rank)."""

Ranked = tuple[IntArray, FloatArray]
"""Rows int32 [q, depth], best first, −1 pads, and scores float32, −inf in pads."""


class NoLexicalIndexError(HoneError):
    """Words were to be searched where a generation has no lexical index."""


@dataclass(frozen=True)
class Query:
    """What to search with: texts, which words need, and vectors float32 [q, dim], which dense search needs."""

    texts: Sequence[str] | None
    vectors: FloatArray | None


@dataclass(frozen=True)
class Manner:
    """How to search: ``fusion`` and ``dense_weight`` are hybrid's, ``exact`` compares with every vector."""

    mode: Literal["dense", "lexical", "hybrid"] = "dense"
    exact: bool = False
    fusion: Literal["rrf", "weights"] = "rrf"
    dense_weight: float = 0.5


def allowed_rows(snapshot: Snapshot, exclude_ids: Collection[str], conditions: Mapping[str, Any]) -> BoolArray | None:
    """Return which rows may be hits as bool [rows], None if all; unknown ids change nothing.

    Raises InputError for a condition on a field that no passage has.
    """
    if not exclude_ids and not conditions:
        return None
    rows = len(snapshot.corpus)
    allowed = snapshot.fields.allowed(conditions).copy() if conditions else np.ones(rows, np.bool_)
    allowed[[row for one in exclude_ids if (row := snapshot.corpus.row_of(one)) is not None]] = False
    return allowed


def search(snapshot: Snapshot, query: Query, manner: Manner, depth: int, allowed: BoolArray | None) -> Ranked:
    """Return the ``depth`` best allowed rows of each query: fewer where the mode finds fewer.

    Raises NoLexicalIndexError where words are asked for and the generation has no index of them.
    """
    if manner.mode == "dense":
        assert query.vectors is not None
        return dense(snapshot, query.vectors, depth, allowed, exact=manner.exact)
    assert query.texts is not None
    index = lexical_index(snapshot)
    if manner.mode == "lexical":
        return index.search(query.texts, depth, allowed)
    assert query.vectors is not None
    wide = max(depth, min(FUSED_DEPTH, len(snapshot.corpus)))
    by_vector = dense(snapshot, query.vectors, wide, allowed, exact=manner.exact)
    by_word = index.search(query.texts, wide, allowed)
    fused = [
        fuse_ranks(near, worded, manner.dense_weight)
        if manner.fusion == "rrf"
        else _fuse_scores(snapshot, (text, vector), np.union1d(near, worded), manner.dense_weight)
        for text, vector, near, worded in zip(query.texts, query.vectors, by_vector[0], by_word[0], strict=True)
    ]
    return _padded(fused, depth)


def dense(snapshot: Snapshot, vectors: FloatArray, depth: int, allowed: BoolArray | None, *, exact: bool) -> Ranked:
    """Return the ``depth`` nearest allowed rows, asking the index unless ``exact`` or few rows are allowed."""
    count = len(snapshot.corpus) if allowed is None else int(allowed.sum())
    if allowed is not None and not exact:
        exact = count <= EXACT_ROWS or snapshot.searcher.fetch(depth, count) > MOST_FETCHED
    if exact:
        return exact_search(vectors, snapshot.vectors, depth, allowed)
    if allowed is None:
        return snapshot.searcher.search(vectors, depth)
    rows, scores = snapshot.searcher.search_allowed(vectors, depth, allowed, MOST_FETCHED)
    short = (rows >= 0).sum(axis=1) < min(depth, count)
    if short.any():  # all that the index finds near these queries was taken away
        rows[short], scores[short] = exact_search(vectors[short], snapshot.vectors, depth, allowed)
    return rows, scores


def lexical_index(snapshot: Snapshot) -> LexicalIndex:
    """Return the index of words of ``snapshot``. Raises NoLexicalIndexError if there is none."""
    if snapshot.lexical is None:
        raise NoLexicalIndexError(
            f"generation {snapshot.generation.number} has no lexical index; build one with [index] lexical = true"
        )
    return snapshot.lexical


def fuse_ranks(near: IntArray, worded: IntArray, dense_weight: float) -> tuple[IntArray, FloatArray]:
    """Return the rows of both lists int32 [n], best first, −1 pads, as int32 [m] with their fused scores.

    A row scores the weighted sum of 1 / (60 + rank) over the lists that it is in; equal scores: lower row first.
    """
    rows = np.union1d(near, worded)
    rows = rows[rows >= 0].astype(np.int32)
    scores = np.zeros(len(rows))
    for found, weight in ((near, dense_weight), (worded, 1 - dense_weight)):
        found = found[found >= 0]
        scores[np.searchsorted(rows, found)] += weight / (RRF_K + 1 + np.arange(len(found)))
    return rows, scores.astype(np.float32)


def _fuse_scores(
    snapshot: Snapshot, query: tuple[str, FloatArray], rows: NDArray[Any], dense_weight: float
) -> tuple[IntArray, FloatArray]:
    """Return ``rows`` without pads and the weighted sum of their two scores, each normalised to 0 … 1 over them."""
    text, vector = query
    rows = rows[rows >= 0].astype(np.int32)
    near = _normalised(snapshot.vectors.gather(rows) @ vector)
    worded = _normalised(lexical_index(snapshot).scores(text)[rows])
    return rows, dense_weight * near + np.float32(1 - dense_weight) * worded


def _normalised(scores: FloatArray) -> FloatArray:
    if not len(scores):
        return scores
    least, most = scores.min(), scores.max()
    return (scores - least) / (most - least) if most > least else np.zeros_like(scores)


def _padded(fused: Sequence[tuple[IntArray, FloatArray]], depth: int) -> Ranked:
    rows = np.full((len(fused), depth), -1, np.int32)
    scores = np.full((len(fused), depth), -np.inf, np.float32)
    for place, (found, of_found) in enumerate(fused):
        best = np.argsort(-of_found, kind="stable")[:depth]
        rows[place, : len(best)] = found[best]
        scores[place, : len(best)] = of_found[best]
    return rows, scores
