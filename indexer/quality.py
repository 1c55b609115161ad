"""What must hold before a generation is published: every row is there, and a vector finds itself.

Does not know FAISS, encoders or judgements.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.exact import Search
from indexer.shards import Vectors
from retriever.data import Corpus
from retriever.errors import StoreError
from retriever.protocols import BoolArray, FloatArray, IntArray

NEAR = 10
"""Places within which an approximate index must find a vector that asks for itself."""
TOLERATED_MISSES = 0.05
"""Share of sampled vectors that an approximate index may miss; shifted ids miss nearly all."""
ROUNDING = 1e-5
SHOWN_ROWS = 5
CHUNK_PAIRS = 16_384


def recall_at(found: IntArray, exact: IntArray, k: int) -> float:
    """Return |found ∩ exact| / |exact| over the first ``k`` places of all queries; pads (−1) do not count.

    ``found`` and ``exact`` are int32 [q, at least k or all there is].
    """
    there = int((exact[:, :k] >= 0).sum())
    return int(_among(found[:, :k], exact[:, :k]).sum()) / there if there else 1.0


def _among(found: IntArray, exact: IntArray) -> BoolArray:
    """Tell which of ``found`` [q, n] are in the same line of ``exact`` [q, n]; pads are not."""
    lines = np.arange(len(exact), dtype=np.int64)[:, None] << 32
    inside: BoolArray = np.isin(lines + found, (lines + exact)[exact >= 0]) & (found >= 0)
    return inside


@dataclass(frozen=True)
class Truth:
    """What exact search finds: ``rows`` int32 [q, depth] and their ``scores`` float32, best first, −1 and −inf in pads.

    ``queries`` float32 [q, dim] were searched for among ``vectors``.
    """

    queries: FloatArray
    vectors: Vectors
    rows: IntArray
    scores: FloatArray

    def recall(self, found: IntArray, k: int) -> tuple[float, float]:
        """Return the share of the first ``k`` hits that ``found`` int32 [q, at least k or all] has, and its error.

        That is the standard error over the queries. A row that is found in place of one that scores like it counts as
        much: which of equal passages come among the first ``k`` is nobody's choice. Where ``rows`` has more than ``k``,
        vectors are read for the queries alone whose next row scores like the last.
        """
        found, there = found[:, :k], (self.rows[:, :k] >= 0).sum(axis=1)
        if not there.any():
            return 1.0, 0.0
        hit = _among(found, self.rows[:, :k])
        unsure = (found >= 0) & ~hit
        if self.scores.shape[1] > k:
            margin = 2 * ROUNDING * np.abs(self.scores[:, 0])  # twice: of two sums that are rounded differently
            unsure &= (self.scores[:, k] >= self.scores[:, k - 1] - margin)[:, None]
        lines, places = np.nonzero(unsure)
        for start in range(0, len(lines), CHUNK_PAIRS):
            line, place = lines[start : start + CHUNK_PAIRS], places[start : start + CHUNK_PAIRS]
            scores = np.einsum("nd,nd->n", self.queries[line], self.vectors.gather(found[line, place]))
            last, best = self.scores[line, there[line] - 1], np.abs(self.scores[line, 0])
            hit[line, place] = scores >= last - ROUNDING * best
        by_query = hit.sum(axis=1) / np.maximum(there, 1)
        return float(hit.sum() / there.sum()), float(by_query.std() / np.sqrt(len(by_query)))


def check_complete(vectors: Vectors, corpus_rows: int, index_rows: int | None = None) -> None:
    """Raise StoreError unless there is one vector for each row of the corpus, and one entry of the index if given."""
    if not len(vectors) == corpus_rows == (corpus_rows if index_rows is None else index_rows):
        raise StoreError(
            f"{corpus_rows} passages, {len(vectors)} vectors, {'no' if index_rows is None else index_rows} index "
            "entries; a row would not be its FAISS id"
        )


def check_self_retrieval(
    search: Search, vectors: Vectors, corpus: Corpus, *, exact: bool, sample: int = 64, seed: int = 0
) -> None:
    """Raise StoreError naming rows if sampled vectors are beaten by another text when they ask for themselves.

    A hit counts as itself if it is the row, has the same text, or scores no less by the true inner product (equal
    vectors; a longer vector where they are not normalised). ``exact``: it must come first for every sampled row;
    otherwise among the first 10, for 95 % of them.
    """
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.choice(len(vectors), min(sample, len(vectors)), replace=False)).astype(np.int32)
    missed = rows[~_finds_itself(search, vectors, corpus.text_hash, rows, 1 if exact else NEAR)]
    if len(missed) > (0 if exact else TOLERATED_MISSES * len(rows)):
        shown = ", ".join(f"{row} ({corpus.id(row)})" for row in missed[:SHOWN_ROWS].tolist())
        raise StoreError(
            f"{len(missed)} of {len(rows)} sampled passages do not find themselves in the index: rows {shown}"
            f"{', …' if len(missed) > SHOWN_ROWS else ''}; ids are shifted, or the factory is too coarse"
        )


def _finds_itself(
    search: Search, vectors: Vectors, text_hash: NDArray[np.uint64], rows: IntArray, depth: int
) -> BoolArray:
    asking = vectors.gather(rows)
    found, _ = search(asking, depth)
    there = found >= 0
    hits = np.where(there, found, rows[:, None])
    hit_vectors = vectors.gather(hits.ravel()).reshape(*hits.shape, vectors.dimensions)
    own = np.einsum("qd,qd->q", asking, asking)[:, None]
    scores = np.einsum("qd,qhd->qh", asking, hit_vectors)
    itself = (text_hash[hits] == text_hash[rows][:, None]) | (scores >= own * (1 - ROUNDING))
    passed: BoolArray = (itself & there).any(axis=1)
    return passed
