"""Negative sets in the store: mined from a generation and published, or opened once they are seen to fit a run.

Does not know how candidates are judged or when a refresh is due.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from indexer.encode import remembering_queries
from indexer.searcher import open_batch_searcher
from indexer.shards import open_vectors
from miner.communities import B3, b3_batches
from miner.generations import OpenEncoder, check_space, generation_source, is_rescored, other_generations
from miner.lexical import lexical_key, lexical_source
from miner.mining import CHUNK_QUERIES, MiningTask, mine
from miner.remembered import RememberedSource
from miner.source_report import report_sources
from miner.sources import SOURCES, OpenGeneration, bits_of
from miner.teacher import PoolTeacher, score_pools
from retriever.artifacts import Artifact
from retriever.counting import counted
from retriever.data import Corpus, QuerySet
from retriever.errors import CorruptError, InputError
from retriever.negatives import MAY_BE_DRAWN, NegativeSet, Verdict, open_negative_set, write_batches
from retriever.protocols import Encoder, FloatArray, IntArray, Progress
from retriever.store import Store
from retriever.teacher_scores import TeacherScores, open_teacher_scores


def publish_negative_set(
    store: Store,
    generation: Artifact,
    open_encoder: OpenEncoder,
    task: MiningTask,
    progress: Progress,
    warn: Callable[[str], None],
    teacher: PoolTeacher | None = None,
) -> Artifact:
    """Mine ``task`` from ``generation`` and publish the negative set.

    ``open_encoder`` opens its encoder, and those of other generations that are sources: the set names these among its
    parents. ``teacher`` scores its pairs. ``warn`` is told why a set that should be carried over in part is mined
    whole, and where sources are short of their quota. Raises InputError if a generation holds another corpus or depth
    exceeds it, StoreError if an encoder is not its generation's or an earlier generation is gone, BusyError if another
    process mines.
    """
    started, encoder = time.monotonic(), open_encoder(generation)
    _check_generation(store, generation, encoder, task.corpus)
    rescored = is_rescored(generation.facts)
    others = {} if rescored else other_generations(store, generation, task.config.sources)
    lineage = {name: other.number for name, other in others.items()}
    with store.negatives.stage({**generation.parents, "generation": generation.number, **lineage}) as draft:
        step, carried = generation.facts["step"], None
        if task.query_fraction < 1:
            carried = set_before(store, step, task, warn, "all queries are mined")
        searched = _searched(store, others, task, open_encoder, warn)  # before: one generation's vectors at a time
        opened = replace(_opened(store, generation, encoder, task, warn), others=searched)
        previous = None if carried is None else open_negative_set(carried.path)
        negatives = mine(draft.path, opened, task, previous, progress)
        seconds = {"mine": time.monotonic() - started}
        draft.facts.update(
            step=step,
            final=bool(generation.facts.get("final", False)),
            dev=generation.facts["dev"],  # by which the trainer stops early
            **pool_facts(task),
            **summary(negatives, generation.number, bits_of(task.config.sources)),
            seconds=seconds,
        )
        if "bm25" in task.config.sources:
            draft.facts["lexical"] = lexical_key(task.corpus, task.queries.texts, task.config.depth)
        if len(task.config.sources) > 1:
            draft.facts["by_source"] = _by_source(negatives, task, warn)
        if task.b3 is not None:
            begun = time.monotonic()
            draft.facts["batches"] = _plan(draft.path, task.b3, negatives, opened, task)
            seconds["batches"] = time.monotonic() - begun
        if teacher is not None:
            begun = time.monotonic()
            draft.facts["teacher"] = score_pools(draft.path, negatives, task, teacher, store.teacher, warn)
            seconds["teacher"] = time.monotonic() - begun
    return store.negatives.at(draft.number)


def _plan(folder: Path, b3: B3, negatives: NegativeSet, opened: OpenGeneration, task: MiningTask) -> dict[str, Any]:
    """Plan batches of all queries into ``folder`` and return how."""
    if opened.pools is not None:  # their order is today's, but what lies among them was searched for long ago
        negatives = replace(negatives, sources=np.zeros_like(negatives.sources))
    batches, inside = b3_batches(
        b3, task.queries.texts, opened.encode, opened.gather, negatives, (task.seed, opened.number)
    )
    write_batches(folder, batches)
    return {"name": "b3", **asdict(b3), "edges_inside": inside}


def _searched(
    store: Store,
    others: Mapping[str, Artifact],
    task: MiningTask,
    open_encoder: OpenEncoder,
    warn: Callable[[str], None],
) -> dict[str, RememberedSource]:
    """Return by name the candidates of ``others``, found."""
    texts, depth = task.queries.texts, task.config.depth
    return {
        name: generation_source(other, open_encoder, texts, depth, store.embeddings, warn)
        for name, other in others.items()
    }


def _by_source(negatives: NegativeSet, task: MiningTask, warn: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Return what each source gave, and say which are short of their quota."""
    config = task.config
    quotas = config.draws()
    told = report_sources(negatives, bits_of(config.sources), config.sampler, quotas, task.seed)
    instead = "those places stay empty" if config.fill is None else f"{config.fill} fills them where it has more"
    for name, one in told.items():
        if one.get("short"):
            of = f"of {len(negatives.queries)} queries"
            short = counted(one["short"], f"{of} has", f"{of} have")
            warn(f"source {name}: {short} fewer than its quota of {one['quota']} negatives; {instead}")
    return told


def _opened(
    store: Store, generation: Artifact, encoder: Encoder, task: MiningTask, warn: Callable[[str], None]
) -> OpenGeneration:
    """Open what ``task`` needs of ``generation`` and of the sets before it."""
    config, last, pools = task.config, None, None
    if "momentum" in config.sources:
        keys = ("corpus_sha256", "queries_sha256")
        last = set_before(store, generation.facts["step"], task, warn, "momentum has no candidates", keys)
    if is_rescored(generation.facts):
        pools = store.negatives.at(generation.parents["negatives"])
        _check_pools(generation, pools, task)
        pools.verify()
    return OpenGeneration(
        generation.number,
        remembering_queries(encoder, store.embeddings, warn),
        open_batch_searcher(generation),
        open_vectors(generation.path / "vectors").gather,
        last=None if last is None else open_negative_set(last.path),
        lexical=lexical_source(task.corpus, task.queries.texts, config.depth, store.lexical)
        if "bm25" in config.sources
        else None,
        pools=None if pools is None else open_negative_set(pools.path),
    )


def _check_pools(generation: Artifact, pools: Artifact, task: MiningTask) -> None:
    """Raise InputError if the ``pools`` that ``generation`` scores do not fit the queries and sources of ``task``."""
    ours = pool_facts(task)
    asked = ("corpus_sha256", "queries_sha256", "depth", "sources")
    if differing := [name for name in asked if pools.facts.get(name) != ours[name]]:
        raise InputError(
            f"{generation.path}: scores the pools of negative set {pools.number} alone, and that differs in "
            f"{', '.join(differing)}; build a full one with `hone index`"
        )


def open_to_vectors(generation: Artifact) -> OpenGeneration:
    """Open ``generation`` for queries that are vectors already: it encodes none, so asking it for texts is an error."""

    def refuse(texts: Sequence[str]) -> FloatArray:
        raise ValueError("this generation was opened without an encoder")

    gather = open_vectors(generation.path / "vectors").gather
    return OpenGeneration(generation.number, refuse, open_batch_searcher(generation), gather)


def _check_generation(store: Store, generation: Artifact, encoder: Encoder, corpus: Corpus) -> None:
    indexed = store.corpora.at(generation.parents["corpus"])
    if indexed.sha256("passages.arrow") != corpus.sha256:
        raise InputError(
            f"{generation.path}: holds corpus {indexed.number}, the run reads another (corpus {corpus.number}); "
            "index the checkpoint again"
        )
    check_space(generation, encoder)


def pool_facts(task: MiningTask) -> dict[str, Any]:
    """Return the facts in which two negative sets must agree so that queries may be carried over."""
    return {
        "corpus_sha256": task.corpus.sha256,
        "queries_sha256": task.queries.sha256,
        "queries": len(task.queries),
        "depth": task.config.depth,
        "sources": bits_of(task.config.sources),
        "filters": asdict(task.config.filters),
        "verdicts_sha256": None if task.judged is None else task.judged.sha256,
    }


def passages_of(negatives: NegativeSet, passages: int) -> IntArray:
    """Return the rows int32 [n], ascending, of all candidates and positives of a set: what scoring it anew needs.

    ``passages`` is the number of rows of the corpus.
    """
    held = np.zeros(passages + 1, np.bool_)  # the last place: of pads
    for start in range(0, len(negatives.queries), CHUNK_QUERIES):
        chunk = slice(start, start + CHUNK_QUERIES)
        held[negatives.passages[chunk]] = held[negatives.positives[chunk]] = True
    return np.flatnonzero(held[:-1]).astype(np.int32)


def set_before(
    store: Store,
    step: int,
    task: MiningTask,
    warn: Callable[[str], None],
    otherwise: str,
    keys: Sequence[str] | None = None,
) -> Artifact | None:
    """Return the newest set of a step before ``step`` if it was mined for the same as ``task``.

    The same: in all pool facts, or in those of ``keys``. None if there is none before; also if it differs or is
    corrupt, which ``warn`` is told with ``otherwise``, what happens then. A trainer that went back to an earlier
    checkpoint leaves sets of later steps behind: they are passed over, so that it meets what it met before.
    """
    for number in reversed(store.negatives.numbers()):
        try:
            found = store.negatives.at(number)
            if found.facts.get("step", step) >= step:
                continue
            found.verify()
        except CorruptError as error:
            warn(f"{error}; {otherwise}")
            return None
        ours = pool_facts(task)
        differing = [name for name in keys or ours if found.facts.get(name) != ours[name]]
        if differing:
            warn(f"{found.path}: differs in {', '.join(differing)}; {otherwise}")
        return None if differing else found
    return None


def summary(negatives: NegativeSet, generation: int, bits: Mapping[str, int] = SOURCES) -> dict[str, Any]:
    """Return counts and means of a set for its manifest; a mean over nothing is None.

    ``verdicts`` counts candidates by name, pads apart, ``candidates`` those that each source of ``bits`` brought;
    ``mined`` and ``carried`` count queries by whether they come from ``generation``; ``top_negative_score_mean`` is
    over each query's best candidate that may be drawn.
    """
    verdicts: Counter[int] = Counter()
    bits = {**SOURCES, **bits}
    candidates = dict.fromkeys(bits, 0)
    pads = scored = 0
    positive_sum = top_sum = 0.0
    for start in range(0, len(negatives.queries), CHUNK_QUERIES):
        chunk = slice(start, start + CHUNK_QUERIES)
        real = negatives.passages[chunk] >= 0
        verdicts.update(negatives.verdicts[chunk][real].tolist())
        pads += int((~real).sum())
        for name, bit in bits.items():
            candidates[name] += int(np.count_nonzero(negatives.sources[chunk] & bit))
        known = negatives.positives[chunk] >= 0
        scored += int(known.sum())
        positive_sum += float(negatives.positive_scores[chunk].sum(where=known, dtype=np.float64))
        eligible = np.isin(negatives.verdicts[chunk], MAY_BE_DRAWN) & real
        first = eligible.argmax(axis=1)[:, None]
        top = np.take_along_axis(negatives.scores[chunk], first, axis=1)[:, 0]
        top_sum += float(top.sum(where=eligible.any(axis=1), dtype=np.float64))
    queries, dropped = len(negatives.queries), int(negatives.dropped.sum())
    mined = int((negatives.mined_from == generation).sum())
    return {
        "eligible_mean": verdicts[Verdict.ELIGIBLE] / queries,
        "verdicts": {verdict.name.lower(): verdicts[verdict] for verdict in Verdict},
        "candidates": candidates,
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


def open_checked_scores(artifact: Artifact, pool: NegativeSet, settings: Mapping[str, Any]) -> TeacherScores:
    """Open the teacher's scores of the negative set ``artifact``, whose arrays are ``pool``.

    Raises InputError if it has none or those of a teacher with other ``settings``, CorruptError if a file is torn.
    """
    facts = artifact.facts.get("teacher")
    scores = open_teacher_scores(artifact.path, pool)
    if facts is None or scores is None:
        raise InputError(
            f"{artifact.path}: holds no teacher scores, as a run without this [teacher] left it; begin anew with "
            "--new, or take it out"
        )
    for name, ours in settings.items():
        if facts.get(name) != ours:
            raise InputError(
                f"{artifact.path}: scored by another teacher ({name} {facts.get(name)!r}, this run's is {ours!r}); "
                "begin anew with --new, or write the one that it was"
            )
    return scores
