"""Stores as a training leaves them for an audit, but without a model. They do not know pytest."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from app.composition import with_positives
from retriever.data import Corpus, QuerySet
from retriever.examples import Batch
from retriever.ingest import ingest_corpus, load_query_set
from retriever.negatives import create_negative_set
from retriever.pair_memory import AuditConfig, PairMemory
from retriever.store import Store

RUN = '[data]\npath = "{data}"\ntrain = "{train}"\n{more}'


def write_run_file(folder: Path, data: Path, train: str = "train", more: str = "") -> Path:
    """Write a run.toml over ``data`` into ``folder`` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.toml").write_text(RUN.format(data=data, train=train, more=more))
    return folder / "run.toml"


def remembering(queries: QuerySet, passages: int, margins: Sequence[float]) -> PairMemory:
    """Return a memory in which query i was seen once, in one batch of all, its first positive with margins[i]."""
    memory = PairMemory(queries, passages, AuditConfig(), 1, lambda row, epoch: 0)
    every = np.arange(len(margins), dtype=np.int32)
    positives = np.array([queries.positives(row)[0] for row in range(len(margins))], np.int32)
    candidates = np.stack([positives, (positives + 1) % passages], axis=1).ravel()
    own = every[:, None] == np.arange(len(candidates)) // 2
    scores = np.zeros(own.shape, np.float32)
    scores[every, 2 * every] = margins
    memory.observe(Batch(every, candidates, 2 * every.astype(np.int64), own, np.zeros_like(own)), scores, 0.1)
    return memory


def trained_store(
    root: Path,
    data: Path,
    train: str = "train",
    margins: Sequence[float] | None = None,
    planted: Callable[[QuerySet], QuerySet] = lambda queries: queries,
) -> tuple[Store, QuerySet]:
    """Return a store whose one checkpoint remembers ``margins`` (None: nothing), and its training queries."""
    store = Store(root, create=True)
    corpus = Corpus(ingest_corpus(store, data))
    loaded = load_query_set(data, train, corpus, skip_missing=True, warn=lambda _: None)
    queries = with_positives(loaded, lambda _: None)
    with store.checkpoints.stage({"corpus": corpus.number}) as draft:
        (draft.path / "training").mkdir()
        if margins is not None:
            remembering(planted(queries), len(corpus), margins).save(draft.path / "training")
        draft.facts.update(step=7)
    return store, queries


def mined_set(store: Store, queries: QuerySet, above: Mapping[int, Sequence[int]], **changes: Any) -> None:
    """Publish a negative set in which the passages above[i] outscore the positive of query i; others are below.

    ``changes``: mined_from int32 [Q] and parents of the set; ``shift`` of all scores but the positives', as by another
    model.
    """
    corpus = Corpus(store.corpora.at(0))
    number = len(store.negatives.numbers())
    parents = {"checkpoint": 0, "generation": number, **changes.get("parents", {})}
    with store.negatives.stage(parents) as draft:
        pool = create_negative_set(draft.path, queries=len(queries), depth=5, positives=1)
        pool.mined_from[:] = changes.get("mined_from", number)
        for row in range(len(queries)):
            positive = int(queries.positives(row)[0])
            better = list(above.get(row, []))
            rest = [one for one in range(len(corpus)) if one not in better and one != positive]
            pool.passages[row] = [*better, positive, *rest][:5]
            pool.scores[row] = [*(0.9 - 0.1 * n for n in range(len(better))), 0.5, 0.4, 0.3, 0.2, 0.1][:5]
            pool.verdicts[row] = [*[0] * len(better), 1, 0, 0, 0, 0][:5]
            pool.positives[row], pool.positive_scores[row] = positive, 0.5
        pool.sources[:] = 1
        pool.scores[:] += np.float32(changes.get("shift", 0.0))
        pool.flush()
        draft.facts.update(sources={"ann": 1}, corpus_sha256=corpus.sha256, queries_sha256=queries.sha256)


def write_comparison(
    folder: Path,
    runs: Mapping[tuple[str, int], tuple[Path, Sequence[float]]],
    split: str = "test",
    changes: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Path:
    """Write results of a comparison: system and seed → its run folder below ``folder``, nDCG@10 of each test query."""
    told = []
    for (system, seed), (root, figures) in runs.items():
        point = {"step": 7, "checkpoint": 0, "key": "k"}
        (root / "curve.json").write_text(json.dumps({"judged": "", "points": [point]}))
        record = {"key": "k", "computed_by": "", "dev": {}, "test": {}, "per_query": {"nDCG@10": list(figures)}}
        (root / "evaluations.jsonl").write_text(json.dumps(record) + "\n")
        name = root.relative_to(folder).as_posix()
        told.append({"system": system, "seed": seed, "folder": name, "best": {"step": 7, "checkpoint": 0}})
    systems = {system: dict(changes.get(system, {})) for system, _ in runs}
    results = {"baseline": next(iter(runs))[0], "systems": systems, "runs": told, "data": {"test": {"split": split}}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder
