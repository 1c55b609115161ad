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
from indexer.faiss_index import build_index, bytes_in_memory, expected_bytes, least_rows, search_index, tunable
from indexer.quality import recall_at
from indexer.shards import Vectors
from indexer.tuning import SERVED_DEPTH, Parameters, Point, corners, walk_edge
from retriever.errors import InputError
from retriever.protocols import FloatArray, IntArray, Progress, silent

if TYPE_CHECKING:
    from indexer.faiss_index import Index

FLAT_ROWS = 20_000
"""Below so many rows exact search is fast enough that nothing is measured."""
CANDIDATES = (
    "IVF{n},PQ{m}x4fs,Refine(SQfp16)",
    "PQ{m}x4fs,Refine(SQfp16)",
    "IVF{n},PQ{m}x4fs,Refine(SQ8)",
    "IVF{n},PQ{m}x4fs",
)
"""HNSW is left out: built by several threads, it would not give the same bytes twice."""
LADDERS: Mapping[str, Sequence[float]] = {
    "efSearch": (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    "nprobe": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256),
    "k_factor": (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32),
}
MEASURED_QUERIES = 1000
REPEATS = 3


@dataclass(frozen=True)
class Choice:
    """A factory with its search parameters, and the measured front that it was chosen from (none: not measured).

    ``deep`` has "depth", "parameters" and "recall" of the deepest searches, those of mining (None: the same).
    """

    factory: str
    parameters: Parameters = field(default_factory=dict)
    front: Sequence[Point] = ()
    deep: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Probe:
    """What indexes of the same vectors are measured with: queries float32 [q, dim] and their exact rows [q, depth]."""

    queries: FloatArray
    exact: IntArray

    @property
    def depth(self) -> int:
        """Depth of the exact rows."""
        return int(self.exact.shape[1])

    def recall(self, index: "Index", parameters: Parameters, k: int) -> float:
        """Return recall@k of ``index`` against exact search."""
        rows, _ = search_index(index, self.queries, k, parameters)
        return recall_at(rows, self.exact, k)

    def measure(self, index: "Index", parameters: Parameters, k: int) -> Point:
        """Search once, and return parameters, recall, queries and queries_per_second."""
        start = time.perf_counter()
        rows, _ = search_index(index, self.queries, k, parameters)
        seconds = time.perf_counter() - start
        return {
            "parameters": dict(parameters),
            "recall": recall_at(rows, self.exact, k),
            "queries": len(self.queries),
            "queries_per_second": len(self.queries) / seconds,
        }


def make_probe(vectors: Vectors, queries: FloatArray, depth: int = SERVED_DEPTH) -> Probe:
    """Search ``queries`` exactly; of more than 1,000 take evenly spread ones, which points count as "queries"."""
    queries = queries[:: max(1, math.ceil(len(queries) / MEASURED_QUERIES))]
    return Probe(queries, exact_search(queries, vectors, depth)[0])


def tune(index: "Index", probe: Probe, target_recall: float, k: int = SERVED_DEPTH) -> list[Point]:
    """Measure ``index`` along the edge of ``target_recall`` at depth ``k``; what may be chosen, best of 4 times."""
    ladders = {name: LADDERS[name] for name in LADDERS if name in tunable(index)}
    points = walk_edge(ladders, target_recall, lambda parameters: probe.measure(index, parameters, k))
    for point in corners(points, target_recall) * REPEATS:  # in turns, so that a moment of load hits all alike
        again = probe.measure(index, point["parameters"], k)
        point["queries_per_second"] = max(point["queries_per_second"], again["queries_per_second"])
    return points


def deep_depth(index: "Index", probe: Probe) -> int | None:
    """Return the depth at which ``index`` needs parameters of its own beside those of depth 10, None if it does not."""
    return probe.depth if probe.depth > SERVED_DEPTH and tunable(index) else None


def tune_deep(index: "Index", probe: Probe, target_recall: float) -> Mapping[str, Any] | None:
    """Return depth, parameters and recall for searches as deep as ``probe``, None where that changes nothing."""
    if deep_depth(index, probe) is None:
        return None
    best = pick(tune(index, probe, target_recall, probe.depth), target_recall)[0]
    return {"depth": probe.depth, "parameters": best["parameters"], "recall": best["recall"]}


def pick(points: Sequence[Point], target_recall: float) -> tuple[Point, list[Point]]:
    """Return the fastest point that reaches ``target_recall`` (none does: the one of highest recall), and the front.

    The front holds the points that no other beats in both recall and speed, fastest first.
    """
    ranked = sorted(points, key=lambda point: (-point["queries_per_second"], -point["recall"]))
    best_so_far = itertools.accumulate((point["recall"] for point in ranked), max, initial=-1.0)
    front = [point for point, best in zip(ranked, best_so_far, strict=False) if point["recall"] > best]
    return next((point for point in front if point["recall"] >= target_recall), front[-1]), front


def fitting(rows: int, dimensions: int, most_bytes: float) -> list[str]:
    """Return the factories that are worth a try, Flat first, without those that would take more than ``most_bytes``.

    Raises InputError naming the key if none is left.
    """
    lists = 2 ** round(math.log2(max(1, rows)) / 2)
    codes = next(m for m in range(dimensions // 2, 0, -1) if dimensions % m == 0)
    factories = ["Flat", *(template.format(n=lists, m=codes) for template in CANDIDATES)]
    factories = [factory for factory in factories if rows >= least_rows(factory, dimensions)]
    sizes = {factory: expected_bytes(factory, dimensions, rows) for factory in factories}
    kept = [factory for factory, size in sizes.items() if size <= most_bytes]
    if not kept:
        least = min(sizes, key=lambda factory: sizes[factory])
        raise InputError(
            f"[index] max_memory_mb = {most_bytes / 1e6:g} is too little for {rows} passages of {dimensions} "
            f"dimensions: the smallest index, {least}, takes {math.ceil(sizes[least] / 1e6)}"
        )
    return kept


def choose_index(
    vectors: Vectors,
    probe: Probe,
    target_recall: float,
    most_bytes: float = math.inf,
    seed: int = 13,
    progress: Progress = silent,
) -> tuple["Index", Choice]:
    """Return Flat below 20,000 rows; else the fastest candidate whose recall@10 over ``probe`` reaches the target.

    The queries of ``probe`` come from the query tower: those of passages would flatter the index. Flat if no
    candidate reaches the target, or the one of highest recall where Flat exceeds ``most_bytes``. Two indexes are in
    memory at a time. Raises InputError like ``fitting``.
    """
    factories = fitting(len(vectors), vectors.dimensions, most_bytes)
    flat = "Flat" in factories
    if (flat and len(vectors) < FLAT_ROWS) or factories == ["Flat"]:
        return build_index("Flat", vectors, seed, progress), Choice("Flat")
    points: list[Point] = []
    best: tuple[Index, Point] | None = None
    for factory in factories:
        if factory == "Flat":
            continue
        start = time.perf_counter()
        index = build_index(factory, vectors, seed, progress)
        facts = {"factory": factory, "build_seconds": time.perf_counter() - start, "bytes": bytes_in_memory(index)}
        points += [{**facts, **point} for point in tune(index, probe, target_recall)]
        chosen, _ = pick(points, target_recall)
        if best is None or chosen["factory"] == factory:
            best = index, chosen
        del index
    assert best is not None
    chosen, front = pick(points, target_recall)
    if chosen["recall"] < target_recall and flat:
        return build_index("Flat", vectors, seed, progress), Choice("Flat", {}, front)
    deep = tune_deep(best[0], probe, target_recall)
    return best[0], Choice(chosen["factory"], chosen["parameters"], front, deep)
