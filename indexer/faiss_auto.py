"""Chooses factory and search parameters from measurements over the real vectors and queries.

Does not know artifacts, the run's configuration, or what FAISS's index types are made of.
"""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from indexer.exact import exact_search
from indexer.faiss_index import build_index, bytes_in_memory, search_index, tunable
from indexer.quality import recall_at
from indexer.shards import Vectors
from retriever.protocols import FloatArray, IntArray

if TYPE_CHECKING:
    from indexer.faiss_index import Index

FLAT_ROWS = 20_000
"""Below so many rows exact search is fast enough that nothing is measured."""
CANDIDATES = ("Flat", "PQ{m}x4fs,RFlat", "IVF{n},PQ{m}x4fs,Refine(SQfp16)")
"""HNSW is left out: built by several threads, it would not give the same bytes twice."""
GRID: Mapping[str, Sequence[int]] = {
    "nprobe": (4, 8, 16, 32, 64, 128),
    "efSearch": (16, 32, 64, 128, 256),
    "k_factor": (2, 4, 8, 16, 32),
}
MEASURED_QUERIES = 1000
REPEATS = 3

Point = dict[str, Any]
"""One measurement: factory, parameters, recall, queries, queries_per_second, build_seconds, bytes."""


@dataclass(frozen=True)
class Choice:
    """A factory with its search parameters, and the measured front that it was chosen from (none: not measured)."""

    factory: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    front: Sequence[Point] = ()


@dataclass(frozen=True)
class Probe:
    """What indexes of the same vectors are measured with: queries float32 [q, dim] and their exact rows [q, k]."""

    queries: FloatArray
    exact: IntArray

    @property
    def k(self) -> int:
        """Depth at which recall is measured."""
        return int(self.exact.shape[1])

    def recall(self, index: "Index", parameters: Mapping[str, float]) -> float:
        """Return recall@k of ``index`` against exact search."""
        rows, _ = search_index(index, self.queries, self.k, parameters)
        return recall_at(rows, self.exact, self.k)


def make_probe(vectors: Vectors, queries: FloatArray, k: int = 10) -> Probe:
    """Search ``queries`` exactly; of more than 1,000 take evenly spread ones, which points count as "queries"."""
    queries = queries[:: max(1, math.ceil(len(queries) / MEASURED_QUERIES))]
    return Probe(queries, exact_search(queries, vectors, k)[0])


def measure(index: "Index", factory: str, probe: Probe, build_seconds: float) -> list[Point]:
    """Search with every combination of the grid for the parameters that ``index`` takes; best of 3 times each."""
    names, size = tunable(index), bytes_in_memory(index)
    points = []
    for values in itertools.product(*(GRID[name] for name in names)):
        parameters = dict(zip(names, values, strict=True))
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            rows, _ = search_index(index, probe.queries, probe.k, parameters)
            seconds.append(time.perf_counter() - start)
        points.append(
            {
                "factory": factory,
                "parameters": parameters,
                "recall": recall_at(rows, probe.exact, probe.k),
                "queries": len(probe.queries),
                "queries_per_second": len(probe.queries) / min(seconds),
                "build_seconds": build_seconds,
                "bytes": size,
            }
        )
    return points


def _build_and_measure(factory: str, vectors: Vectors, probe: Probe, seed: int) -> list[Point]:
    start = time.perf_counter()
    index = build_index(factory, vectors, seed)
    return measure(index, factory, probe, time.perf_counter() - start)


def pick(points: Sequence[Point], target_recall: float) -> Choice:
    """Return the fastest point that reaches ``target_recall`` (none does: the one of highest recall), and the front.

    The front holds the points that no other beats in both recall and speed, fastest first.
    """
    ranked = sorted(points, key=lambda point: (-point["queries_per_second"], -point["recall"]))
    best_so_far = itertools.accumulate((point["recall"] for point in ranked), max, initial=-1.0)
    front = [point for point, best in zip(ranked, best_so_far, strict=False) if point["recall"] > best]
    chosen = next((point for point in front if point["recall"] >= target_recall), front[-1])
    return Choice(chosen["factory"], chosen["parameters"], front)


def choose_index(vectors: Vectors, queries: FloatArray, target_recall: float, k: int = 10, seed: int = 13) -> Choice:
    """Return Flat below 20,000 rows; else the fastest candidate whose recall@k over ``queries`` reaches the target.

    ``queries`` float32 [q, dim] come from the query tower: those of passages would flatter the index. Flat if no
    candidate reaches the target.
    """
    if len(vectors) < FLAT_ROWS:
        return Choice("Flat")
    probe = make_probe(vectors, queries, k)
    lists = 2 ** round(math.log2(4 * math.sqrt(len(vectors))))
    codes = next(m for m in range(vectors.dimensions // 2, 0, -1) if vectors.dimensions % m == 0)
    factories = [template.format(n=lists, m=codes) for template in CANDIDATES]
    points = [point for factory in factories for point in _build_and_measure(factory, vectors, probe, seed)]
    choice = pick(points, target_recall)
    reached = any(point["recall"] >= target_recall for point in points)
    return choice if reached else Choice("Flat", {}, choice.front)
