"""From a generation to a negative set: find candidates, judge them, write them down chunk by chunk.

Does not know the store, the encoder's kind or how the trainer draws from the set.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.promotion import JUDGED, PREVIOUS
from miner.communities import B3
from miner.counter_hash import uniform
from miner.filters import FilterConfig, judge
from miner.per_query import PerQueryConfig
from miner.quotas import Quotas
from miner.samplers import SamplerConfig
from miner.sources import Asked, OpenGeneration, bits_of, exact_scores, find, generation_of
from miner.verdicts import ACTIONS, WRITTEN, StoredVerdicts
from retriever.artifacts import BEST, SERVED
from retriever.data import Corpus, QuerySet, duplicate_hash
from retriever.errors import InputError
from retriever.negatives import MAY_BE_DRAWN, NegativeSet, create_negative_set
from retriever.protocols import FloatArray, IntArray, Progress, silent

CHUNK_QUERIES = 1024


def _comes_with_time(name: str) -> bool:
    """Tell whether ``name`` is a source of a generation that may not be there yet when the first set is mined."""
    wanted = generation_of(name)
    return isinstance(wanted, int) or wanted in (SERVED, BEST, JUDGED, PREVIOUS)


@dataclass(frozen=True)
class MiningConfig:
    """The [negatives] of a run: ``depth`` candidates a query from each source, the limits of FilterConfig, a sampler.

    ``live``: the trainer searches for each batch's queries as they are, in the generation of the set in use (ADORE).
    ``per_query``: a query keeps its negatives until they have become easy (Conan). ``quotas``: how many negatives of a
    query each source gives (R²anker); ``fill``: the source that gives what another is short of, None leaves those
    places empty. ``verdicts``: a file of judgements that every refresh respects, relative to the run's own file.
    ``on_relevant``: what is done about a pair that it calls relevant: the action "written" beside each, or one for all.
    Raises InputError naming the key of a value that cannot be mined with.
    """

    sources: tuple[str, ...] = ("ann",)
    depth: int = 200
    range_min: int = 0
    range_max: int | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = 0.0
    max_score: float | None = None
    adaptive: float | None = None
    iqr: float | None = None
    verdicts: str | None = None
    on_relevant: str = WRITTEN
    live: bool = False
    per_query: PerQueryConfig | None = None
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    quotas: dict[str, int] | None = None
    fill: str | None = None

    def __post_init__(self) -> None:
        """Check each value and how they agree."""
        if not self.sources or len(set(self.sources)) < len(self.sources):
            raise InputError(f"[negatives] sources = {list(self.sources)}: name each source once, and at least one")
        bits_of(self.sources)
        if all(name == "momentum" or _comes_with_time(name) for name in self.sources):
            raise InputError(f'[negatives] sources = {list(self.sources)}: the first set may have none; add "ann"')
        self._check_quotas()
        if self.live and self.sources != ("ann",):
            raise InputError(f'[negatives] sources = {list(self.sources)}: live = true searches, it needs ["ann"]')
        if self.per_query is not None and (self.live or self.sampler != SamplerConfig()):
            raise InputError("[negatives] per_query assigns ranks: take sampler and live out")
        if self.on_relevant not in (WRITTEN, *ACTIONS):
            raise InputError(f"[negatives] on_relevant = {self.on_relevant!r}: choose {WRITTEN}, {', '.join(ACTIONS)}")
        if self.on_relevant != WRITTEN and self.verdicts is None:
            raise InputError(f"[negatives] on_relevant = {self.on_relevant!r} needs verdicts, a file of judgements")
        if self.depth < 1:
            raise InputError(f"[negatives] depth = {self.depth}: write 1 or more")
        if self.filters.range_min >= self.width:
            raise InputError(f"[negatives] range_min = {self.range_min} leaves nothing of depth = {self.depth}")
        if "ann" in self.sources and len(self.sources) > 1 and self.range_max is not None:
            self._check_range(self.range_max)

    def _check_range(self, range_max: int) -> None:
        """Ranks count over all sources by similarity, and "ann" has the first ``depth`` of them to itself."""
        if range_max <= self.depth:
            others = ", ".join(name for name in self.sources if name != "ann")
            raise InputError(
                f'[negatives] range_max = {range_max}: the first depth = {self.depth} ranks are those of "ann", so '
                f"nothing of {others} could be drawn; leave range_max out and let depth bound each source"
            )

    def _check_quotas(self) -> None:
        quotas = self.quotas
        if quotas is None:
            if self.fill is not None:
                raise InputError(f'[negatives] fill = "{self.fill}": it needs quotas')
            return
        if set(quotas) != set(self.sources) or min(quotas.values()) < 1:
            raise InputError(f"[negatives] quotas = {quotas}: give each of sources = {list(self.sources)} 1 or more")
        if max(quotas.values()) > self.depth:
            raise InputError(f"[negatives] quotas = {quotas}: none may exceed depth = {self.depth}")
        if self.fill is not None and self.fill not in quotas:
            raise InputError(f'[negatives] fill = "{self.fill}": name one of sources = {list(self.sources)}')
        if self.live or self.per_query is not None:
            raise InputError("[negatives] quotas draw from a stored pool of several sources: take live, per_query out")

    def check_drawn(self, *counts: int) -> None:
        """Raise InputError if the quotas add up to none of ``counts``, the negatives that are drawn for a query."""
        total = None if self.quotas is None else sum(self.quotas.values())
        if total not in (None, *counts):
            drawn = " or ".join(map(str, counts))
            raise InputError(f"[negatives] quotas add up to {total} negatives, but {drawn} are drawn: make them agree")

    def wanted(self, count: int, bits: Mapping[str, int] | None = None) -> int | Quotas:
        """Return what is drawn for a query where ``count`` negatives are asked for: the quotas if they are that many.

        A run whose ranker and retriever draw different numbers has the quotas of one of them.
        """
        quotas = self.draws(bits)
        return quotas if quotas is not None and quotas.total == count else count

    def draws(self, bits: Mapping[str, int] | None = None) -> Quotas | None:
        """Return the quotas by the bits of their sources, None without quotas.

        ``bits``: those of the set that is drawn from, where that was mined by another configuration.
        """
        if self.quotas is None:
            return None
        bits = bits_of(self.sources) if bits is None else bits
        fill = 0 if self.fill is None else bits.get(self.fill, 0)
        return Quotas(tuple((bits.get(name, 0), quota) for name, quota in self.quotas.items()), fill)

    @property
    def width(self) -> int:
        """Candidates that a query's pool has room for: ``depth`` of each source."""
        return self.depth * len(self.sources)

    @property
    def filters(self) -> FilterConfig:
        """The limits on candidates."""
        return FilterConfig(**{limit.name: getattr(self, limit.name) for limit in fields(FilterConfig)})


@dataclass(frozen=True)
class MiningTask:
    """What a run mines for, the same for all its generations.

    ``query_fraction`` of the queries are mined anew, the others carried over from the set before. ``judged``: stored
    verdicts on these queries; ``b3``: how batches are planned with each set, None if they are not. ``by_text``: what is
    relevant for a query's text under another id is no negative of it either. Raises InputError if the fraction is not
    in (0, 1].
    """

    corpus: Corpus
    queries: QuerySet
    config: MiningConfig
    seed: int
    query_fraction: float = 1.0
    judged: StoredVerdicts | None = None
    b3: B3 | None = None
    by_text: bool = True

    def __post_init__(self) -> None:
        """Check the fraction."""
        if not 0 < self.query_fraction <= 1:
            raise InputError(f"[refresh] query_fraction = {self.query_fraction}: write a share above 0, at most 1")


def mine(
    folder: Path,
    generation: OpenGeneration,
    task: MiningTask,
    previous: NegativeSet | None = None,
    progress: Progress = silent,
) -> NegativeSet:
    """Write a negative set for all queries of ``task`` into ``folder`` and return it.

    ``previous`` is a set of the same corpus, queries and filters: what is not mined anew is copied from it.
    ``progress`` counts the queries that are mined. Memory is bounded by a chunk of queries × candidates. Raises
    InputError if depth exceeds the corpus.
    """
    queries = task.queries
    found = create_negative_set(folder, len(queries), task.config.width, most_positives(queries))
    due = queries_due(task, generation.number, previous)
    if previous is not None:
        _carry_over(found, previous, np.setdiff1d(found.queries, due, assume_unique=True))
    for start in range(0, len(due), CHUNK_QUERIES):
        _mine_chunk(found, due[start : start + CHUNK_QUERIES], generation, task)
        progress(min(start + CHUNK_QUERIES, len(due)), len(due))
    found.flush()
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
    vectors = generation.encode([task.queries.texts[row] for row in rows])
    mined = mine_queries(rows, vectors, generation, task, found.positives.shape[1])
    for array in fields(NegativeSet):
        getattr(found, array.name)[rows] = getattr(mined, array.name)


def mine_queries(
    rows: IntArray, vectors: FloatArray, generation: OpenGeneration, task: MiningTask, most_positives: int
) -> NegativeSet:
    """Return a set of the queries ``rows`` int32 [q] alone, in memory; ``vectors`` float32 [q, dim] are theirs.

    ``most_positives`` is the width of its positives, at least as many as a query has.
    """
    positives = _positives(task.queries, rows, most_positives)
    of_positives = exact_scores(vectors, positives, generation.gather)
    candidates = find(Asked(rows, vectors, positives, of_positives), generation, task.config.sources, task.config.depth)
    query_hash, text_hash = _hashes(task, rows), task.corpus.text_hash
    limits = task.config.filters
    verdicts = judge(candidates.rows, candidates.scores, positives, of_positives, query_hash, text_hash, limits)
    if task.judged is not None:
        verdicts = task.judged.respected(verdicts, rows, candidates.rows)
    return NegativeSet(
        queries=rows,
        passages=candidates.rows,
        scores=candidates.scores,
        sources=candidates.sources,
        verdicts=verdicts,
        positives=positives,
        positive_scores=of_positives,
        dropped=np.asarray(~np.isin(verdicts, MAY_BE_DRAWN).any(axis=1)),
        mined_from=np.full(len(rows), generation.number, np.int32),
    )


def most_positives(queries: QuerySet) -> int:
    """Return how many positives a query has at most, 1 where none has any."""
    return max((len(queries.positives(row)) for row in range(len(queries))), default=0) or 1


def _positives(queries: QuerySet, rows: IntArray, width: int) -> IntArray:
    padded = np.full((len(rows), width), -1, np.int32)
    for line, row in zip(padded, rows, strict=True):
        positives = queries.positives(int(row))
        line[: len(positives)] = positives
    return padded


def _hashes(task: MiningTask, rows: IntArray) -> NDArray[np.uint64]:
    """Return the hashes [q, H] of each query's text and of what is relevant for that text under another id."""
    queries, text_hash = task.queries, task.corpus.text_hash
    others = [np.setdiff1d(queries.known(row), queries.positives(row)) for row in rows if task.by_text]
    own = np.array([duplicate_hash(queries.texts[row]) for row in rows], np.uint64)
    hashes = np.repeat(own[:, None], 1 + max(map(len, others), default=0), axis=1)
    for line, found in zip(hashes, others, strict=False):  # without ``by_text`` there are none
        line[1 : 1 + len(found)] = text_hash[found]
    return hashes
