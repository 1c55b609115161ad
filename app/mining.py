"""Mining a snapshot for the queries of a request: the miner's own candidates, verdicts and draws, without its files.

Does not know HTTP, nor how queries become vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.snapshot import Snapshot
from miner.counter_hash import gumbel
from miner.mining import MiningConfig, MiningTask, OpenGeneration, mine_in_memory
from miner.samplers import SAMPLERS, draw
from miner.sources import SOURCES
from retriever.data import QuerySet, hash64
from retriever.errors import InputError
from retriever.negatives import NegativeSet, Verdict
from retriever.protocols import BoolArray, FloatArray

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
    alone, not on its neighbours. Raises InputError for a configuration that this corpus does not allow.
    """
    found = _pools(snapshot, queries, vectors, config, seed)
    columns, mask = _drawn(found, queries, snapshot.generation.number, config, num_negatives, seed)
    return [
        {"id": query.id, "negatives": [_negative(snapshot, found, line, column) for column in drawn[kept]]}
        for line, (query, drawn, kept) in enumerate(zip(queries, columns, mask, strict=True))
    ]


def _pools(
    snapshot: Snapshot, queries: Sequence[Asked], vectors: FloatArray, config: MiningConfig, seed: int
) -> NegativeSet:
    corpus = snapshot.corpus
    relevant = [{row: 1 for one in query.positives if (row := corpus.row_of(one)) is not None} for query in queries]
    asked = QuerySet("request", [query.id for query in queries], [query.text for query in queries], relevant)
    generation = OpenGeneration(
        snapshot.generation.number, lambda texts: vectors, snapshot.searcher, snapshot.vectors.gather
    )
    return mine_in_memory(generation, MiningTask(corpus, asked, config, seed))


def _drawn(
    found: NegativeSet,
    queries: Sequence[Asked],
    generation: int,
    config: MiningConfig,
    num_negatives: int,
    seed: int,
) -> tuple[NDArray[np.intp], BoolArray]:
    """Draw columns of the eligible candidates; the noise of a query comes from its own id."""
    sampler = SAMPLERS[config.sampler.name]
    noise: NDArray[np.float64] | float = 0.0
    if sampler.random:
        query_keys = np.array([hash64(query.id) for query in queries], np.uint64)
        noise = gumbel("mine", seed, generation, query_keys[:, None], found.passages)
    weights = sampler.log_weights(found.scores, found.verdicts == Verdict.ELIGIBLE)
    return draw(weights, num_negatives, noise)


def _negative(snapshot: Snapshot, found: NegativeSet, line: int, column: int) -> dict[str, Any]:
    bits = int(found.sources[line, column])
    return {
        "id": snapshot.corpus.id(found.passages[line, column]),
        "score": found.scores[line, column],
        "rank": int(column) + 1,
        "source": "+".join(name for name, bit in SOURCES.items() if bits & bit),
        "verdict": Verdict(found.verdicts[line, column]).name.lower(),
    }
