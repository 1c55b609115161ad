"""Chooses factory and search parameters from measurements over the real vectors and queries.

Does not know artifacts, the run's configuration, or what FAISS's index types are made of.
"""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from indexer.faiss_index import build_index, bytes_in_memory, expected_bytes, least_rows, search_index, tunable
from indexer.quality import Truth
from indexer.searcher import search_exactly
from indexer.shards import Vectors
from indexer.tuning import SERVED_DEPTH, Parameters, Point, corners, walk_edge
from retriever.errors import InputError
from retriever.protocols import FloatArray, Progress, silent

if TYPE_CHECKING:
    from indexer.faiss_index import Index

FLAT_ROWS = 20_000
"""Below so many rows exact search is fast enough that nothing is measured."""
CODES_PER_DIMENSION = (1 / 4, 1 / 6)
"""Codes of 4 bits: few are the faster to scan, many need fewer refined candidates. Halves and thirds lost."""
CANDIDATES = ("IVF{n},PQ{m}x4fs,Refine(SQfp16)", "IVF{n},PQ{m}x4fs,Refine(SQ8)", "IVF{n},PQ{m}x4fs")
"""The finest that fits the memory limit is tried. HNSW is left out: built by several threads, it would not give the
same bytes twice."""
LADDERS: Mapping[str, Sequence[float]] = {
    "efSearch": (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    "nprobe": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256),
    "k_factor": (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32),
}
MEASURED_QUERIES = 1000
DEEP_QUERIES = 250
"""So many queries suffice where each has a hundred neighbours or more to be found."""
REPEATS = 2


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
    """What indexes of ``vectors`` are measured with: queries float32 [q, dim], and the depth of recall."""

    queries: FloatArray
    vectors: Vectors
    depth: int

    @cached_property
    def exact(self) -> Truth:
        """What exact search finds, made when an index is measured: that of a generation before is not."""
        # one more than is counted: where it scores less than the last, no vector is read to tell what ties with it
        return Truth(self.queries, self.vectors, *search_exactly(self.queries, self.vectors, self.depth + 1))

    def measure(self, index: "Index", parameters: Parameters) -> Point:
        """Search once, and return parameters, recall, queries and queries_per_second."""
        start = time.perf_counter()
        rows, _ = search_index(index, self.queries, self.depth, parameters)
        seconds = time.perf_counter() - start
        return {
            "parameters": dict(parameters),
            "recall": self.exact.recall(rows, self.depth)[0],
            "queries": len(self.queries),
            "queries_per_second": len(self.queries) / seconds,
        }


Probes = tuple[Probe, Probe | None]
"""At depth 10, and at that of mining where it is deeper."""


def make_probe(vectors: Vectors, queries: FloatArray, depth: int = SERVED_DEPTH) -> Probe:
    """Measure with evenly spread ``queries``, at most 1,000 at depth 10 and 250 below; a point counts them."""
    most = MEASURED_QUERIES if depth <= SERVED_DEPTH else DEEP_QUERIES
    queries = queries[:: max(1, math.ceil(len(queries) / most))]
    return Probe(queries, vectors, depth)


def tune(index: "Index", probe: Probe, target_recall: float) -> list[Point]:
    """Measure ``index`` along the edge of ``target_recall``; what may be chosen, best of 3 times."""
    ladders = {name: LADDERS[name] for name in LADDERS if name in tunable(index)}
    points = walk_edge(ladders, target_recall, lambda parameters: probe.measure(index, parameters))
    for point in corners(points, target_recall) * REPEATS:  # in turns, so that a moment of load hits all alike
        again = probe.measure(index, point["parameters"])
        point["queries_per_second"] = max(point["queries_per_second"], again["queries_per_second"])
    return points


def tune_deep(index: "Index", deep: Probe | None, target_recall: float) -> Mapping[str, Any] | None:
    """Return depth, parameters and recall for searches as deep as ``deep``, None where there is nothing to set."""
    if deep is None or not tunable(index):
        return None
    best, _ = pick(tune(index, deep, target_recall), target_recall)
    return {"depth": deep.depth, "parameters": best["parameters"], "recall": best["recall"]}


def pick(points: Sequence[Point], target_recall: float) -> tuple[Point, list[Point]]:
    """Return the fastest point that reaches ``target_recall`` (none does: the one of highest recall), and the front.

    The front holds the points that no other beats in both recall and speed, fastest first.
    """
    ranked = sorted(points, key=lambda point: (-point["queries_per_second"], -point["recall"]))
    best_so_far = itertools.accumulate((point["recall"] for point in ranked), max, initial=-1.0)
    front = [point for point, best in zip(ranked, best_so_far, strict=False) if point["recall"] > best]
    return next((point for point in front if point["recall"] >= target_recall), front[-1]), front


def fitting(rows: int, dimensions: int, most_bytes: float) -> list[str]:
    """Return the factories that are worth a try, Flat first, none of which takes more than ``most_bytes``.

    Of each number of codes it is the one with the finest refinement that fits. Raises InputError naming the key if
    there is none.
    """
    lists = 2 ** round(math.log2(max(1, rows)) / 2)
    sizes: dict[str, int] = {}

    def finest(factories: Sequence[str]) -> list[str]:
        possible = [factory for factory in factories if rows >= least_rows(factory, dimensions)]
        sizes.update({factory: expected_bytes(factory, dimensions, rows) for factory in possible})
        return [factory for factory in possible if sizes[factory] <= most_bytes][:1]

    kept = finest(["Flat"])
    for share in CODES_PER_DIMENSION:
        codes = next(m for m in range(max(1, int(dimensions * share)), 0, -1) if dimensions % m == 0)
        kept += finest([template.format(n=lists, m=codes) for template in CANDIDATES])
    if not kept:
        least = min(sizes, key=lambda factory: sizes[factory])
        raise InputError(
            f"[index] max_memory_mb = {most_bytes / 1e6:g} is too little for {rows} passages of {dimensions} "
            f"dimensions: the smallest index, {least}, takes {math.ceil(sizes[least] / 1e6)}"
        )
    return list(dict.fromkeys(kept))


def choose_index(
    vectors: Vectors,
    probes: Probes,
    target_recall: float,
    most_bytes: float = math.inf,
    seed: int = 13,
    progress: Progress = silent,
) -> tuple["Index", Choice]:
    """Return Flat below 20,000 rows; else the fastest candidate whose recall@10 over ``probes`` reaches the target.

    The probes, at depth 10 and at that of mining, hold queries of the query tower: passages would flatter the index.
    Flat if no candidate reaches the target, or the one of highest recall where Flat exceeds ``most_bytes``. Two indexes
    are in memory at a time. Raises InputError like ``fitting``.
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
        points += [{**facts, **point} for point in tune(index, probes[0], target_recall)]
        chosen, _ = pick(points, target_recall)
        if best is None or chosen["factory"] == factory:
            best = index, chosen
        del index
    assert best is not None
    chosen, front = pick(points, target_recall)
    if chosen["recall"] < target_recall and flat:
        return build_index("Flat", vectors, seed, progress), Choice("Flat", {}, front)
    deep = tune_deep(best[0], probes[1], target_recall)
    return best[0], Choice(chosen["factory"], chosen["parameters"], front, deep)
