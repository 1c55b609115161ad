"""A searcher over one index: its parameters travel with each call, so many threads may share it.

Does not know FAISS, texts or which generation is served.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.faiss_index import empty_index, is_exact, read_index, search_index
from indexer.shards import open_vectors
from indexer.tuning import SERVED_DEPTH, interpolate
from retriever.artifacts import Artifact
from retriever.errors import CorruptError
from retriever.protocols import FloatArray, IntArray

if TYPE_CHECKING:
    from indexer.faiss_index import Index


class IndexSearcher:
    """Implements retriever.protocols.Searcher over an index and the parameters of its calls.

    ``parameters`` hold up to depth 10, those of ``deep`` (its "parameters") from its "depth" on: deeper searches need
    more lists and a smaller k_factor. Between the two they are interpolated.
    """

    def __init__(self, index: "Index", parameters: Mapping[str, float], deep: Mapping[str, Any] | None = None) -> None:
        self._index = index
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

    def search(self, queries: FloatArray, depth: int) -> tuple[IntArray, FloatArray]:
        """Return rows int32 [q, depth], best first, −1 pads, and scores float32, −inf in pads, for float32 [q, dim].

        Raises InputError for queries of other dimensions and a depth below 1.
        """
        return search_index(self._index, queries, depth, self.parameters_at(depth))

    def parameters_at(self, depth: int) -> Mapping[str, float]:
        """Return the parameters of a search for ``depth`` passages."""
        if self._deep is None or depth <= SERVED_DEPTH:
            return self.parameters
        share = math.log(depth / SERVED_DEPTH) / math.log(self._deep["depth"] / SERVED_DEPTH)
        return interpolate(self.parameters, self._deep["parameters"], share)

    def search_excluding(
        self, queries: FloatArray, depth: int, excluded: Sequence[set[int]]
    ) -> tuple[IntArray, FloatArray]:
        """Search like ``search``, leaving out the rows ``excluded[i]`` for query i.

        Fetches deeper, twice as deep each time, for those queries that too many hits were taken from, until each has
        ``depth`` or the index gives no more.
        """
        rows = np.full((len(queries), depth), -1, np.int32)
        scores = np.full((len(queries), depth), -np.inf, np.float32)
        waiting = np.arange(len(queries))
        fetch = depth + max((min(depth, len(rows_out)) for rows_out in excluded), default=0)
        while len(waiting):
            found, found_scores = self.search(queries[waiting], min(fetch, self.rows))
            unfinished = []
            for query, hits, hit_scores in zip(waiting.tolist(), found, found_scores, strict=True):
                kept = [place for place, row in enumerate(hits.tolist()) if row >= 0 and row not in excluded[query]]
                exhausted = fetch >= self.rows or hits[-1] < 0
                if len(kept) < depth and not exhausted:
                    unfinished.append(query)
                    continue
                kept = kept[:depth]
                rows[query, : len(kept)] = hits[kept]
                scores[query, : len(kept)] = hit_scores[kept]
            waiting = np.array(unfinished, np.int64)
            fetch *= 2
        return rows, scores


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

    There a matrix product serves all queries of a chunk, and nothing is missed; the index serves one query well.
    """
    if generation.facts["rows"] > EXACT_ROWS:
        return open_searcher(generation)
    blocks = (block for _, block in open_vectors(generation.path / "vectors").blocks())
    return exact_searcher(generation.facts["dim"], blocks)


def exact_searcher(dimensions: int, blocks: Iterable[FloatArray]) -> IndexSearcher:
    """Return a searcher that compares every vector of ``blocks``, float32 [n, dimensions] each, in their order."""
    index = empty_index("Flat", dimensions, 0)
    for block in blocks:
        index.add(np.ascontiguousarray(block))
    return IndexSearcher(index, {})
