"""Settles which factory and search parameters a generation gets, and builds that index.

Does not know artifacts on disk, encoders or judgements.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from indexer.faiss_auto import Choice, Probe, choose_index, make_probe, measure, pick
from indexer.faiss_index import build_index, check_parameters, empty_index
from indexer.shards import Vectors
from retriever.errors import InputError
from retriever.protocols import FloatArray, Progress

if TYPE_CHECKING:
    from indexer.faiss_index import Index

RECALL_DEPTH = 10


@dataclass(frozen=True)
class IndexConfig:
    """The TOML table [index].

    ``factory`` is a FAISS factory string, or "auto"; ``target_recall`` is recall@10 against exact search; ``search``
    fixes nprobe, efSearch or k_factor (empty: the cheapest that reach ``target_recall`` are measured); ``seed`` is
    that of k-means; ``engine`` and ``precision`` tell what computes the vectors, in which number format ("auto":
    what is fastest on this hardware among those that are as good as float32). Raises InputError naming the key that is
    out of range.
    """

    factory: str = "auto"
    target_recall: float = 0.95
    search: Mapping[str, float] = field(default_factory=dict)
    seed: int = 13
    engine: Literal["auto", "torch", "openvino"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"

    def __post_init__(self) -> None:
        if not self.factory.strip():
            raise InputError('[index] factory is empty; write "auto" or a FAISS factory string such as "Flat"')
        if not 0 < self.target_recall <= 1:
            raise InputError(f"[index] target_recall = {self.target_recall}; write a share above 0 and up to 1")
        if self.search and self.factory == "auto":
            raise InputError('[index] search needs a factory; with "auto" the parameters are chosen too')


def check_config(config: IndexConfig, dimensions: int, rows: int) -> None:
    """Raise InputError at once for a factory or parameters that FAISS would refuse after hours of encoding."""
    if config.factory != "auto":
        check_parameters(empty_index(config.factory, dimensions, rows), config.search)


def earlier_choice(facts: Mapping[str, Any], config: IndexConfig, corpus_sha256: str) -> Choice | None:
    """Return what an earlier generation of the same corpus and configuration settled on, None of another.

    Kept, a choice makes the next generations repeatable: measured speed is not.
    """
    if facts.get("index_config") != asdict(config) or facts.get("corpus_sha256") != corpus_sha256:
        return None
    return Choice(facts["factory"], facts["search"], facts["front"])


def make_index(
    vectors: Vectors,
    queries: FloatArray,
    config: IndexConfig,
    earlier: Choice | None,
    progress: Progress,
    warn: Callable[[str], None],
) -> tuple["Index", Choice]:
    """Build the index that ``config`` asks for; ``queries`` float32 [q, dim] come from the query tower.

    The ``earlier`` choice holds as long as it reaches the target recall; otherwise parameters, and with "auto" the
    factory too, are measured. A factory that cannot reach the target is said through ``warn``.
    """
    if config.search:
        index = build_index(config.factory, vectors, config.seed, progress)
        return index, Choice(config.factory, config.search)
    probe = make_probe(vectors, queries, RECALL_DEPTH)
    factory = earlier.factory if earlier else config.factory
    if factory != "auto":
        start = time.perf_counter()
        index = build_index(factory, vectors, config.seed, progress)
        seconds = time.perf_counter() - start
        if earlier and (factory == "Flat" or probe.recall(index, earlier.parameters) >= config.target_recall):
            return index, earlier
        if config.factory != "auto":
            return index, _tuned(index, config, probe, seconds, warn)
        del index  # at most one is in memory
    choice = choose_index(vectors, queries, config.target_recall, RECALL_DEPTH, config.seed)
    return build_index(choice.factory, vectors, config.seed, progress), choice


def _tuned(
    index: "Index", config: IndexConfig, probe: Probe, build_seconds: float, warn: Callable[[str], None]
) -> Choice:
    choice = pick(measure(index, config.factory, probe, build_seconds), config.target_recall)
    best = max(point["recall"] for point in choice.front)
    if best < config.target_recall:
        warn(
            f"[index] factory = {config.factory!r} reaches recall@{RECALL_DEPTH} {best:.3f} at most, "
            f"below target_recall = {config.target_recall}; choose a finer one"
        )
    return choice
