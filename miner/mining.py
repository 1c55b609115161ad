"""From a generation to a negative set: search the queries, judge what is found, write it down chunk by chunk.

Does not know the store, the encoder's kind or how the trainer draws from the set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from miner.counter_hash import uniform
from miner.filters import FilterConfig, judge
from miner.samplers import SamplerConfig
from miner.sources import SOURCES, ann_candidates
from retriever.data import Corpus, QuerySet, duplicate_hash
from retriever.errors import InputError
from retriever.negatives import NegativeSet, Verdict, create_negative_set, empty_negative_set
from retriever.protocols import FloatArray, IntArray, Progress, Searcher, silent

CHUNK_QUERIES = 1024
CHUNK_POSITIVES = 16_384


@dataclass(frozen=True)
class MiningConfig:
    """The [negatives] of a run: ``depth`` candidates a query from ``sources``, the limits of FilterConfig, a sampler.

    Raises InputError naming the key of a value that cannot be mined with.
    """

    sources: tuple[str, ...] = ("ann",)
    depth: int = 200
    range_min: int = 0
    range_max: int | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = 0.0
    max_score: float | None = None
    sampler: SamplerConfig = field(default_factory=SamplerConfig)

    def __post_init__(self) -> None:
        """Check each value and how they agree."""
        unknown = [name for name in self.sources if name not in SOURCES]
        if unknown or not self.sources:
            raise InputError(f"[negatives] sources = {list(self.sources)}: choose from {', '.join(SOURCES)}")
        if self.depth < 1:
            raise InputError(f"[negatives] depth = {self.depth}: write 1 or more")
        if self.filters.range_min >= self.depth:
            raise InputError(f"[negatives] range_min = {self.range_min} leaves nothing of depth = {self.depth}")

    @property
    def filters(self) -> FilterConfig:
        """The limits on candidates."""
        return FilterConfig(**{limit.name: getattr(self, limit.name) for limit in fields(FilterConfig)})


@dataclass(frozen=True)
class MiningTask:
    """What a run mines for, the same for all its generations.

    ``query_fraction`` of the queries are mined anew, the others carried over from the set before. Raises InputError if
    it is not in (0, 1].
    """

    corpus: Corpus
    queries: QuerySet
    config: MiningConfig
    seed: int
    query_fraction: float = 1.0

    def __post_init__(self) -> None:
        """Check the fraction."""
        if not 0 < self.query_fraction <= 1:
            raise InputError(f"[refresh] query_fraction = {self.query_fraction}: write a share above 0, at most 1")


@dataclass(frozen=True)
class OpenGeneration:
    """What mining needs of generation ``number``.

    ``encode`` is its query tower: texts to float32 [n, dim]; ``gather`` gives its passage vectors float32 [n, dim] at
    rows int32 [n].
    """

    number: int
    encode: Callable[[Sequence[str]], FloatArray]
    searcher: Searcher
    gather: Callable[[IntArray], FloatArray]


def mine(
    folder: Path,
    generation: OpenGeneration,
    task: MiningTask,
    previous: NegativeSet | None = None,
    progress: Progress = silent,
) -> NegativeSet:
    """Write a negative set for all queries of ``task`` into ``folder`` and return it.

    ``previous`` is a set of the same corpus, queries and filters: what is not mined anew is copied from it.
    ``progress`` counts the queries that are mined. Memory is bounded by a chunk of queries × depth. Raises InputError
    if depth exceeds the corpus.
    """
    queries = task.queries
    width = max((len(queries.positives(row)) for row in range(len(queries))), default=0) or 1
    found = create_negative_set(folder, len(queries), task.config.depth, width)
    due = queries_due(task, generation.number, previous)
    if previous is not None:
        _carry_over(found, previous, np.setdiff1d(found.queries, due, assume_unique=True))
    for start in range(0, len(due), CHUNK_QUERIES):
        _mine_chunk(found, due[start : start + CHUNK_QUERIES], generation, task)
        progress(min(start + CHUNK_QUERIES, len(due)), len(due))
    found.flush()
    return found


def mine_in_memory(generation: OpenGeneration, task: MiningTask) -> NegativeSet:
    """Return a negative set for all queries of ``task`` that lies in memory alone: for a few. Raises like ``mine``."""
    rows = np.arange(len(task.queries), dtype=np.int32)
    width = max((len(task.queries.positives(int(row))) for row in rows), default=0) or 1
    found = empty_negative_set(len(rows), task.config.depth, width)
    _mine_chunk(found, rows, generation, task)
    return found


def queries_due(task: MiningTask, generation: int, previous: NegativeSet | None) -> IntArray:
    """Return the query rows int32 to mine anew, ascending: all of them where there is no ``previous`` set.

    Those mined longest ago come first and a counter hash of seed, ``generation`` and row chooses among equals, so
    each query's turn comes within 1 / query_fraction refreshes, rounded up.
    """
    rows = np.arange(len(task.queries), dtype=np.int32)
    if previous is None:
        return rows
    count = int(np.ceil(task.query_fraction * len(rows)))
    order = np.lexsort((uniform("queries due", task.seed, generation, rows), previous.mined_from))
    return np.sort(rows[order[:count]])


def _carry_over(found: NegativeSet, previous: NegativeSet, rows: IntArray) -> None:
    for start in range(0, len(rows), CHUNK_QUERIES):
        chunk = rows[start : start + CHUNK_QUERIES]
        for array in fields(NegativeSet):
            getattr(found, array.name)[chunk] = getattr(previous, array.name)[chunk]


def _mine_chunk(found: NegativeSet, rows: IntArray, generation: OpenGeneration, task: MiningTask) -> None:
    texts = [task.queries.texts[row] for row in rows]
    vectors = generation.encode(texts)
    passages, scores = ann_candidates(generation.searcher, vectors, task.config.depth)
    positives = _positives(task.queries, rows, found.positives.shape[1])
    of_positives = positive_scores(vectors, positives, generation.gather)
    query_hash = np.array([duplicate_hash(text) for text in texts], np.uint64)
    text_hash = task.corpus.text_hash
    verdicts = judge(passages, scores, positives, of_positives, query_hash, text_hash, task.config.filters)
    found.passages[rows] = passages
    found.scores[rows] = scores
    found.sources[rows] = np.where(passages >= 0, SOURCES["ann"], 0)
    found.verdicts[rows] = verdicts
    found.positives[rows] = positives
    found.positive_scores[rows] = of_positives
    found.dropped[rows] = ~(verdicts == Verdict.ELIGIBLE).any(axis=1)
    found.mined_from[rows] = generation.number


def _positives(queries: QuerySet, rows: IntArray, width: int) -> IntArray:
    padded = np.full((len(rows), width), -1, np.int32)
    for line, row in zip(padded, rows, strict=True):
        positives = queries.positives(int(row))
        line[: len(positives)] = positives
    return padded


def positive_scores(
    query_vectors: FloatArray, positives: IntArray, gather: Callable[[IntArray], FloatArray]
) -> NDArray[np.float32]:
    """Return exact dot products float32 [q, P] of queries float32 [q, dim] and their ``positives``, 0 at pads."""
    scores = np.zeros(positives.shape, np.float32)
    lines, columns = np.nonzero(positives >= 0)
    for start in range(0, len(lines), CHUNK_POSITIVES):
        line, column = lines[start : start + CHUNK_POSITIVES], columns[start : start + CHUNK_POSITIVES]
        passage_vectors = gather(positives[line, column])
        scores[line, column] = np.einsum("nd,nd->n", query_vectors[line], passage_vectors)
    return scores
