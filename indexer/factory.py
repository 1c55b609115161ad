"""Settles which factory and search parameters a generation gets, and builds that index.

Does not know artifacts on disk, encoders or judgements.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from indexer.faiss_auto import Choice, Probes, choose_index, fitting, make_probe, pick, tune, tune_deep
from indexer.faiss_index import build_index, bytes_in_memory, check_parameters, empty_index, expected_bytes, tunable
from indexer.shards import Vectors
from indexer.tuning import SERVED_DEPTH
from retriever.errors import InputError
from retriever.protocols import FloatArray, Progress

if TYPE_CHECKING:
    from indexer.faiss_index import Index


MOST_RERANKED = 100
"""Hits of a dev query that the gate has reranked at most: with more its pairs would not do for twenty queries."""


@dataclass(frozen=True)
class IndexConfig:
    """The TOML table [index].

    ``factory`` is a FAISS factory string, or "auto"; ``target_recall`` is recall@10 against exact search; ``search``
    fixes nprobe, efSearch or k_factor (empty: the cheapest that reach ``target_recall`` are measured);
    ``max_memory_mb`` is the most that the index may take, in millions of bytes (None: no limit); ``seed`` is
    that of k-means; ``engine`` and ``precision`` tell what computes the vectors, in which number format ("auto":
    what is fastest on this hardware among those that are as good as float32), ``query_precision`` in which queries are
    computed ("auto": as passages, but never in int8); ``lexical`` adds an index of the words,
    by which a server can search too; ``rerank_depth``: where a generation holds a ranker, the gate has that rerank so
    many hits of dev queries and judges what it makes of them (0: the gate does not ask); ``slices``: fields of the dev
    queries' metadata, and no queries of one value may fall by themselves. Raises InputError naming the key that is out
    of range.
    """

    factory: str = "auto"
    target_recall: float = 0.95
    max_memory_mb: float | None = None
    search: Mapping[str, float] = field(default_factory=dict)
    seed: int = 13
    engine: Literal["auto", "torch", "openvino"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    query_precision: Literal["auto", "int8"] = "auto"
    lexical: bool = True
    rerank_depth: int = 20
    slices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.factory.strip():
            raise InputError('[index] factory is empty; write "auto" or a FAISS factory string such as "Flat"')
        if not 0 < self.target_recall <= 1:
            raise InputError(f"[index] target_recall = {self.target_recall}; write a share above 0 and up to 1")
        if self.max_memory_mb is not None and not self.max_memory_mb > 0:
            raise InputError(f"[index] max_memory_mb = {self.max_memory_mb}; write megabytes above 0, or leave it out")
        if self.seed < 0:
            raise InputError(f"[index] seed = {self.seed}; write 0 or more")
        if self.search and self.factory == "auto":
            raise InputError('[index] search needs a factory; with "auto" the parameters are chosen too')
        if not 0 <= self.rerank_depth <= MOST_RERANKED:
            raise InputError(f"[index] rerank_depth = {self.rerank_depth}; write 0 to {MOST_RERANKED}")
        if len({*self.slices}) < len(self.slices):
            raise InputError(f"[index] slices = {[*self.slices]}: name each field once")

    @property
    def most_bytes(self) -> float:
        """What ``max_memory_mb`` allows, in bytes."""
        return math.inf if self.max_memory_mb is None else self.max_memory_mb * 1e6


def check_config(config: IndexConfig, dimensions: int, rows: int) -> None:
    """Raise InputError at once for what FAISS or the memory limit would refuse after hours of encoding."""
    if config.factory == "auto":
        fitting(rows, dimensions, config.most_bytes)
        return
    check_parameters(empty_index(config.factory, dimensions, rows), config.search)
    size = expected_bytes(config.factory, dimensions, rows)
    if size > config.most_bytes:
        raise InputError(
            f"[index] factory = {config.factory!r} takes about {math.ceil(size / 1e6)} MB for {rows} passages, more "
            f'than max_memory_mb = {config.max_memory_mb:g}; raise that or choose "auto"'
        )


def earlier_choice(facts: Mapping[str, Any], config: IndexConfig, corpus_sha256: str) -> Choice | None:
    """Return what an earlier generation of the same corpus and configuration settled on, None of another.

    Kept, a choice makes the next generations repeatable: measured speed is not.
    """
    made = facts.get("index_config")
    if made is None or facts.get("corpus_sha256") != corpus_sha256:
        return None
    if replace(IndexConfig(**made), slices=config.slices) != config:  # slices have no say in the index
        return None
    return Choice(facts["factory"], facts["search"], facts["front"], facts.get("search_deep"))


def make_index(
    vectors: Vectors,
    queries: FloatArray,
    config: IndexConfig,
    earlier: Choice | None,
    progress: Progress,
    warn: Callable[[str], None],
    depth: int = SERVED_DEPTH,
) -> tuple["Index", Choice]:
    """Build the index that ``config`` asks for; ``queries`` float32 [q, dim] come from the query tower.

    Search parameters are measured at depth 10 and at ``depth``, that of mining. The ``earlier`` choice holds as long
    as it reaches the target recall at both; otherwise parameters, and with "auto" the factory too, are measured
    again. A target that is not reached is said through ``warn``.
    """
    if config.search:
        index = build_index(config.factory, vectors, config.seed, progress)
        return index, Choice(config.factory, config.search)
    probe, depth = make_probe(vectors, queries), min(depth, len(vectors))
    probes = probe, make_probe(vectors, queries, depth) if depth > SERVED_DEPTH else None
    factory = earlier.factory if earlier else config.factory
    if factory != "auto":
        start = time.perf_counter()
        index = build_index(factory, vectors, config.seed, progress)
        seconds = time.perf_counter() - start
        if earlier and _holds(earlier, index, probes, config.target_recall):
            return index, earlier
        if config.factory != "auto":
            return index, _tuned(index, config, probes, seconds, warn)
        del index
    index, choice = choose_index(vectors, probes, config.target_recall, config.most_bytes, config.seed, progress)
    _say_if_short(choice, config, warn)
    return index, choice


def _holds(choice: Choice, index: "Index", probes: Probes, target_recall: float) -> bool:
    if not tunable(index):
        return choice.factory == "Flat" or probes[0].measure(index, {})["recall"] >= target_recall
    shallow, deep = probes
    if (choice.deep or {}).get("depth") != (deep and deep.depth):
        return False
    if shallow.measure(index, choice.parameters)["recall"] < target_recall:
        return False
    if deep is None or choice.deep is None:
        return True
    return bool(deep.measure(index, choice.deep["parameters"])["recall"] >= min(target_recall, choice.deep["recall"]))


def _tuned(
    index: "Index", config: IndexConfig, probes: Probes, build_seconds: float, warn: Callable[[str], None]
) -> Choice:
    facts = {"factory": config.factory, "build_seconds": build_seconds, "bytes": bytes_in_memory(index)}
    points = [{**facts, **point} for point in tune(index, probes[0], config.target_recall)]
    chosen, front = pick(points, config.target_recall)
    choice = Choice(config.factory, chosen["parameters"], front, tune_deep(index, probes[1], config.target_recall))
    _say_if_short(choice, config, warn)
    return choice


def _say_if_short(choice: Choice, config: IndexConfig, warn: Callable[[str], None]) -> None:
    if choice.factory == "Flat":
        best = max((point["recall"] for point in choice.front), default=1.0)
        if best < config.target_recall:
            warn(
                f"no quicker kind of index reaches target_recall = {config.target_recall} here (best: {best:.3f}): "
                "each search compares every vector; lower [index] target_recall for a quicker one"
            )
        return
    deep = choice.deep
    found = {SERVED_DEPTH: max(point["recall"] for point in choice.front)}
    if deep is not None:
        found[deep["depth"]] = deep["recall"]
    for depth, recall in found.items():
        if recall < config.target_recall:
            warn(
                f"[index] factory = {choice.factory!r} reaches recall@{depth} {recall:.3f} at most, "
                f"below target_recall = {config.target_recall}; choose a finer one, or a larger max_memory_mb"
            )
