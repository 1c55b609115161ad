"""Mining a snapshot for the queries of a request: the miner's own candidates, verdicts and draws, without its files.

Does not know HTTP, nor how queries become vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.searching import lexical_index
from app.snapshot import Snapshot
from miner.counter_hash import gumbel
from miner.filters import lowest_positive
from miner.mining import MiningConfig, MiningTask, mine_queries, most_positives
from miner.quotas import draw_wanted
from miner.samplers import Pool, log_weights
from miner.sources import SOURCES, OpenGeneration
from retriever.data import QuerySet, hash64
from retriever.errors import InputError
from retriever.negatives import NegativeSet, Verdict
from retriever.protocols import BoolArray, FloatArray, IntArray

SHOWN_UNKNOWN = 5


@dataclass(frozen=True)
class Asked:
    """A query to mine for: ``positives`` are ids of passages."""

    id: str
    text: str
    positives: Sequence[str]


def check_positives(snapshot: Snapshot, queries: Sequence[Asked]) -> None:
    """Raise InputError naming the positives that the corpus lacks."""
    unknown = [one for query in queries for one in query.positives if snapshot.corpus.row_of(one) is None]
    if unknown:
        shown = ", ".join(map(repr, unknown[:SHOWN_UNKNOWN])) + (", …" if len(unknown) > SHOWN_UNKNOWN else "")
        corpus = f"the corpus of generation {snapshot.generation.number}"
        raise InputError(f"queries.positives: {len(unknown)} ids are not in {corpus}: {shown}")


def mined(
    snapshot: Snapshot,
    queries: Sequence[Asked],
    vectors: FloatArray,
    config: MiningConfig,
    num_negatives: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return {"id", "negatives": [{"id", "score", "rank", "source", "verdict"}]} for each of ``queries``.

    ``vectors`` float32 [q, dim] are theirs. A query's negatives depend on generation, seed, id, text and positives
    alone, not on its neighbours. Raises InputError for a configuration that this corpus does not
    allow, NoLexicalIndexError for the source bm25 where the generation has no index of words.
    """
    if "bm25" in config.sources:
        lexical_index(snapshot)
    found = _pools(snapshot, query_set(snapshot, queries), vectors, config, seed)
    columns, mask = _drawn(found, queries, snapshot.generation.number, config, num_negatives, seed)
    return [
        {"id": query.id, "negatives": [_negative(snapshot, found, line, column) for column in drawn[kept]]}
        for line, (query, drawn, kept) in enumerate(zip(queries, columns, mask, strict=True))
    ]


def fitted(config: MiningConfig, snapshot: Snapshot) -> MiningConfig:
    """Return ``config`` with at most as many candidates as there are passages."""
    return replace(config, depth=min(config.depth, len(snapshot.corpus)))


def query_set(snapshot: Snapshot, queries: Sequence[Asked]) -> QuerySet:
    """Return ``queries`` with the corpus rows of their positives."""
    corpus = snapshot.corpus
    relevant = [{row: 1 for one in query.positives if (row := corpus.row_of(one)) is not None} for query in queries]
    return QuerySet("request", [query.id for query in queries], [query.text for query in queries], relevant)


def _pools(snapshot: Snapshot, asked: QuerySet, vectors: FloatArray, config: MiningConfig, seed: int) -> NegativeSet:
    generation = OpenGeneration(
        snapshot.generation.number,
        lambda texts: vectors,
        snapshot.searcher,
        snapshot.vectors.gather,
        lexical=None if snapshot.lexical is None else lambda rows: _by_words(snapshot, asked, rows, config.depth),
    )
    rows = np.arange(len(asked), dtype=np.int32)
    task = MiningTask(snapshot.corpus, asked, config, seed)
    return mine_queries(rows, vectors, generation, task, most_positives(asked))


def _by_words(snapshot: Snapshot, asked: QuerySet, rows: IntArray, depth: int) -> IntArray:
    assert snapshot.lexical is not None
    return snapshot.lexical.search([asked.texts[row] for row in rows], depth)[0]


def _drawn(
    found: NegativeSet,
    queries: Sequence[Asked],
    generation: int,
    config: MiningConfig,
    num_negatives: int,
    seed: int,
) -> tuple[NDArray[np.intp], BoolArray]:
    """Draw columns of the eligible candidates; the noise of a query comes from its own id."""
    noise: NDArray[np.float64] | float = 0.0
    if config.sampler.random:
        query_keys = np.array([hash64(query.id) for query in queries], np.uint64)
        noise = gumbel("mine", seed, generation, query_keys[:, None], found.passages)
    eligible = found.verdicts == Verdict.ELIGIBLE
    pool = Pool(found.scores, eligible, lowest_positive(found.positives, found.positive_scores))
    return draw_wanted(log_weights(pool, config.sampler), found.sources, config.wanted(num_negatives), noise)


def _negative(snapshot: Snapshot, found: NegativeSet, line: int, column: int) -> dict[str, Any]:
    bits = int(found.sources[line, column])
    return {
        "id": snapshot.corpus.id(found.passages[line, column]),
        "score": found.scores[line, column],
        "rank": int(column) + 1,
        "source": "+".join(name for name, bit in SOURCES.items() if bits & bit),
        "verdict": Verdict(found.verdicts[line, column]).name.lower(),
    }
