"""A searcher over one index: its parameters travel with each call, so many threads may share one in main memory.

Does not know FAISS, texts or which generation is served.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.exact import check_queries, exact_search
from indexer.faiss_gpu import MOST_DEPTH
from indexer.faiss_index import empty_index, fits_gpu, gpu_copy, is_exact, read_index, search_index
from indexer.shards import Vectors, open_vectors
from indexer.tuning import SERVED_DEPTH, interpolate
from retriever.artifacts import Artifact
from retriever.errors import CorruptError
from retriever.protocols import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from indexer.faiss_index import Index


class IndexSearcher:
    """Implements retriever.protocols.Searcher over an index and the parameters of its calls.

    ``parameters`` hold at depth 10, those of ``deep`` (its "parameters") from its "depth" on: deeper searches need
    more lists and a smaller k_factor. Between the two they are interpolated; a shallower search compares as many
    candidates again as one of depth 10. ``copy``: the same flat index on a GPU, which answers from one thread at a
    time, and as deep as it can.
    """

    def __init__(
        self,
        index: "Index",
        parameters: Mapping[str, float],
        deep: Mapping[str, Any] | None = None,
        copy: "Index | None" = None,
    ) -> None:
        self._index = index
        self._copy = copy
        self.parameters = dict(parameters)
        self._deep = deep

    @property
    def rows(self) -> int:
        """Number of passages in the index."""
        return self._index.ntotal

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._index.d

    @property
    def exact(self) -> bool:
        """Whether the index compares every passage's own vector."""
        return is_exact(self._index)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU answers."""
        return self._copy is not None

    def search(self, queries: FloatArray, depth: int) -> tuple[IntArray, FloatArray]:
        """Return rows int32 [q, depth], best first, −1 pads, and scores float32, −inf in pads, for float32 [q, dim].

        Raises InputError for queries of other dimensions and a depth below 1.
        """
        if self._copy is not None and min(depth, self.rows) <= MOST_DEPTH:
            return search_index(self._copy, queries, depth, {})
        return search_index(self._index, queries, depth, self.parameters_at(depth))

    def parameters_at(self, depth: int) -> Mapping[str, float]:
        """Return the parameters of a search for ``depth`` passages."""
        if depth < SERVED_DEPTH and "k_factor" in self.parameters:
            return {**self.parameters, "k_factor": self.parameters["k_factor"] * SERVED_DEPTH / max(depth, 1)}
        if self._deep is None or depth <= SERVED_DEPTH:
            return self.parameters
        share = math.log(depth / SERVED_DEPTH) / math.log(self._deep["depth"] / SERVED_DEPTH)
        return interpolate(self.parameters, self._deep["parameters"], share)

    def search_allowed(
        self, queries: FloatArray, depth: int, allowed: BoolArray, most: int | None = None
    ) -> tuple[IntArray, FloatArray]:
        """Search like ``search`` among the rows that ``allowed`` bool [rows] holds.

        Fetches deeper, at least twice as deep each time, for those queries that too many hits were taken from, until
        each has ``depth``, the index gives no more, or it would go deeper than ``most``, None for all rows.
        """
        rows = np.full((len(queries), depth), -1, np.int32)
        scores = np.full((len(queries), depth), -np.inf, np.float32)
        waiting = np.arange(len(queries))
        most = self.rows if most is None else most
        fetch = self.fetch(depth, int(allowed.sum()))
        while len(waiting):
            found, of_found = self.search(queries[waiting], fetch)
            kept = (found >= 0) & allowed[found]
            deeper = min(2 * fetch, self.rows)
            done = (kept.sum(axis=1) >= depth) | (found[:, -1] < 0) | (fetch >= self.rows) | (deeper > most)
            front = np.argsort(~kept, axis=1, kind="stable")[:, :depth]
            width = front.shape[1]
            kept = np.take_along_axis(kept, front, axis=1)
            into = waiting[done]
            rows[into, :width] = np.where(kept, np.take_along_axis(found, front, axis=1), np.int32(-1))[done]
            scores[into, :width] = np.where(kept, np.take_along_axis(of_found, front, axis=1), -np.inf)[done]
            waiting = waiting[~done]
            fetch = deeper
        return rows, scores

    def fetch(self, depth: int, allowed: int) -> int:
        """Return how deep to search at first for ``depth`` of ``allowed`` rows: all that is excluded may come first."""
        spread = math.ceil(1.5 * depth * self.rows / max(1, allowed))
        return min(self.rows, depth + self.rows - allowed, max(depth, spread))


def open_searcher(generation: Artifact) -> IndexSearcher:
    """Open the index of ``generation`` with the search parameters that its manifest keeps.

    Raises CorruptError if the index is unreadable or not of the manifest's rows and dimensions.
    """
    path = generation.path / "index.faiss"
    searcher = IndexSearcher(read_index(path), generation.facts["search"], generation.facts.get("search_deep"))
    expected = (generation.facts["rows"], generation.facts["dim"])
    if (searcher.rows, searcher.dimensions) != expected:
        raise CorruptError(f"{path}: {searcher.rows} x {searcher.dimensions} where {expected} belongs; build it again")
    return searcher


EXACT_ROWS = 100_000
"""Up to so many passages, comparing all is faster for thousands of deep searches than visiting lists."""


def open_batch_searcher(generation: Artifact) -> IndexSearcher:
    """Open ``generation`` for thousands of queries at a time: exact over its vectors where they are few enough.

    There a matrix product serves all queries of a chunk, and nothing is missed; the index serves one query well. On a
    GPU "few enough" is what fits it. Raises StoreError if other processes have left no room there.
    """
    rows, dimensions = generation.facts["rows"], generation.facts["dim"]
    if rows > EXACT_ROWS and not fits_gpu(rows, dimensions):
        return open_searcher(generation)
    blocks = (block for _, block in open_vectors(generation.path / "vectors").blocks())
    return exact_searcher(dimensions, blocks)


def exact_searcher(dimensions: int, blocks: Iterable[FloatArray]) -> IndexSearcher:
    """Return a searcher that compares every vector of ``blocks``, float32 [n, dimensions] each, in their order.

    A GPU does it where one is and the vectors fit. Raises StoreError if other processes have left no room there.
    """
    index = empty_index("Flat", dimensions, 0)
    for block in blocks:
        index.add(np.ascontiguousarray(block))
    return IndexSearcher(index, {}, copy=gpu_copy(index))


def search_exactly(queries: FloatArray, vectors: Vectors, depth: int) -> tuple[IntArray, FloatArray]:
    """Search all ``vectors`` like ``exact_search``, on a GPU where one is, they fit, and it goes so deep.

    There, rows whose scores differ by rounding alone may change places. Raises InputError like ``exact_search``,
    StoreError if other processes have left no room on the GPU.
    """
    check_queries(queries, vectors.dimensions)
    if min(depth, len(vectors)) > MOST_DEPTH or not fits_gpu(len(vectors), vectors.dimensions):
        return exact_search(queries, vectors, depth)
    return exact_searcher(vectors.dimensions, (block for _, block in vectors.blocks())).search(queries, depth)
