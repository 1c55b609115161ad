"""Negative sets in the store: mined from a generation and published, or opened once they are seen to fit a run.

Does not know how candidates are judged or when a refresh is due.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from indexer.encode import remembering_queries
from indexer.searcher import open_searcher
from indexer.shards import open_vectors
from miner.mining import CHUNK_QUERIES, MiningTask, OpenGeneration, mine
from miner.sources import SOURCES
from retriever.artifacts import CURRENT, Artifact
from retriever.data import Corpus, QuerySet
from retriever.errors import CorruptError, InputError, StoreError
from retriever.negatives import NegativeSet, Verdict, open_negative_set
from retriever.protocols import Encoder, Progress
from retriever.store import Store


def publish_negative_set(
    store: Store,
    generation: Artifact,
    encoder: Encoder,
    task: MiningTask,
    progress: Progress,
    warn: Callable[[str], None],
) -> Artifact:
    """Mine ``task`` from ``generation``, whose own encoder is ``encoder``, and publish the negative set.

    ``warn`` is told why a set that should be carried over in part is mined whole. Raises InputError if the generation
    holds another corpus or depth exceeds it, StoreError if the encoder is not the generation's, BusyError if another
    process mines.
    """
    started = time.monotonic()
    _check_generation(store, generation, encoder, task.corpus)
    with store.negatives.stage({**generation.parents, "generation": generation.number}) as draft:
        pool = pool_facts(task)
        previous = _previous_set(store, task, pool, warn)
        opened = OpenGeneration(
            generation.number,
            remembering_queries(encoder, store.embeddings, warn),
            open_searcher(generation),
            open_vectors(generation.path / "vectors").gather,
        )
        negatives = mine(draft.path, opened, task, previous, progress)
        draft.facts.update(
            step=generation.facts["step"],
            final=bool(generation.facts.get("final", False)),
            dev=generation.facts["dev"],  # by which the trainer stops early
            **pool,
            **summary(negatives, generation.number),
            seconds={"mine": time.monotonic() - started},
        )
    return store.negatives.at(draft.number)


def _check_generation(store: Store, generation: Artifact, encoder: Encoder, corpus: Corpus) -> None:
    indexed = store.corpora.at(generation.parents["corpus"])
    if indexed.sha256("passages.arrow") != corpus.sha256:
        raise InputError(
            f"{generation.path}: holds corpus {indexed.number}, the run reads another (corpus {corpus.number}); "
            "index the checkpoint again"
        )
    if encoder.fingerprints.space != generation.facts["space"]:
        raise StoreError(
            f"{generation.path}: its vectors are of space {generation.facts['space']}, "
            f"the encoder's of {encoder.fingerprints.space}; open the encoder from the generation's own model"
        )


def pool_facts(task: MiningTask) -> dict[str, Any]:
    """Return the facts in which two negative sets must agree so that queries may be carried over."""
    return {
        "corpus_sha256": task.corpus.sha256,
        "queries_sha256": task.queries.sha256,
        "queries": len(task.queries),
        "depth": task.config.depth,
        "sources": {name: SOURCES[name] for name in task.config.sources},
        "filters": asdict(task.config.filters),
    }


def _previous_set(
    store: Store, task: MiningTask, pool: dict[str, Any], warn: Callable[[str], None]
) -> NegativeSet | None:
    if task.query_fraction == 1 or store.negatives.pointed(CURRENT) is None:
        return None
    try:
        previous = store.negatives.intact(CURRENT, warn)
    except CorruptError as error:
        warn(f"{error}; all queries are mined")
        return None
    assert previous is not None  # CURRENT exists: there is an intact set or an error
    differing = [name for name, value in pool.items() if previous.facts.get(name) != value]
    if differing:
        warn(f"{previous.path}: differs in {', '.join(differing)}, so nothing is carried over; all queries are mined")
        return None
    return open_negative_set(previous.path)


def summary(negatives: NegativeSet, generation: int) -> dict[str, Any]:
    """Return counts and means of a set for its manifest; a mean over nothing is None.

    ``verdicts`` counts candidates by name, pads apart; ``mined`` and ``carried`` count queries by whether they come
    from ``generation``; ``top_negative_score_mean`` is over each query's best eligible candidate.
    """
    verdicts: Counter[int] = Counter()
    pads = scored = 0
    positive_sum = top_sum = 0.0
    for start in range(0, len(negatives.queries), CHUNK_QUERIES):
        chunk = slice(start, start + CHUNK_QUERIES)
        real = negatives.passages[chunk] >= 0
        verdicts.update(negatives.verdicts[chunk][real].tolist())
        pads += int((~real).sum())
        known = negatives.positives[chunk] >= 0
        scored += int(known.sum())
        positive_sum += float(negatives.positive_scores[chunk].sum(where=known, dtype=np.float64))
        eligible = negatives.verdicts[chunk] == Verdict.ELIGIBLE
        first = eligible.argmax(axis=1)[:, None]
        top = np.take_along_axis(negatives.scores[chunk], first, axis=1)[:, 0]
        top_sum += float(top.sum(where=eligible.any(axis=1), dtype=np.float64))
    queries, dropped = len(negatives.queries), int(negatives.dropped.sum())
    mined = int((negatives.mined_from == generation).sum())
    return {
        "eligible_mean": verdicts[Verdict.ELIGIBLE] / queries,
        "verdicts": {verdict.name.lower(): verdicts[verdict] for verdict in Verdict},
        "pads": pads,
        "dropped": dropped,
        "mined": mined,
        "carried": queries - mined,
        "positive_score_mean": positive_sum / scored if scored else None,
        "top_negative_score_mean": top_sum / (queries - dropped) if queries > dropped else None,
    }


def open_checked_set(artifact: Artifact, corpus: Corpus, query_set: QuerySet) -> NegativeSet:
    """Open the negative set ``artifact`` for a run over ``corpus`` and ``query_set``.

    Raises InputError if it was mined for another corpus or other queries, CorruptError if a file is torn.
    """
    for what, fact, ours in (
        ("corpus", "corpus_sha256", corpus.sha256),
        ("query set", "queries_sha256", query_set.sha256),
    ):
        if artifact.facts[fact] != ours:
            raise InputError(
                f"{artifact.path}: mined for another {what} ({fact} {artifact.facts[fact][:12]}…, "
                f"this run's is {ours[:12]}…); mine it again"
            )
    return open_negative_set(artifact.path)
