"""What a ranker adds to a trained run: its best and its last checkpoint's hits reranked, dev choosing between the two.

Does not know how the run was trained, nor how runs are compared.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.comparison.run_curve import METRIC, Judged, Measuring, Point, rounded
from app.evaluating import RUN_DEPTH, evaluate_vectors
from app.rankers import own_ranker
from app.reranking import DEPTH, Candidates, Journal, journal_key, rerank, reranking_facts
from indexer.builder import ranker_of
from indexer.encode import encode_corpus
from indexer.shards import drop_unused
from retriever.artifacts import BEST, CURRENT, Artifact
from retriever.data import QuerySet
from retriever.durable import sha256_json, write_atomic
from retriever.metrics import mean, per_query
from retriever.protocols import TokenRanker
from retriever.store import Store

RERANKED = "reranked.json"
MEASURES = (METRIC, "RR@10")


@dataclass(frozen=True)
class RankerChoice:
    """Who reranks the first ``depth`` hits: ``given`` for every run, else the ranker that a checkpoint holds."""

    depth: int = DEPTH
    given: TokenRanker | None = None

    def checkpoints(self, store: Store) -> list[Artifact]:
        """Return the best and the last checkpoint of a measured run, once if they are one, where they have a ranker."""
        numbers = {store.checkpoints.pointed(BEST), store.checkpoints.pointed(CURRENT)}
        found = [store.checkpoints.at(number) for number in sorted(one for one in numbers if one is not None)]
        return [one for one in found if self.given is not None or ranker_of(one) is not None]

    def key(self, judged: Judged, checkpoint: Artifact) -> list[str]:
        """Return what identifies the reranked figures of ``checkpoint``."""
        held = ranker_of(checkpoint)
        own = "" if held is None else sha256_json(dict(held.facts))
        by = self.given.fingerprint if self.given is not None else own
        return [judged.key(checkpoint), by, str(self.depth)]

    def open(self, checkpoint: Artifact) -> TokenRanker:
        """Return the ranker of ``checkpoint``, which must be there."""
        ranker = self.given or own_ranker(checkpoint)
        assert ranker is not None
        return ranker


@dataclass(frozen=True)
class RerankedRun:
    """A run's figures on test with the ranker, and ``before`` of the same checkpoint without it; what scoring cost."""

    depth: int
    before: Point
    after: Point
    pairs: int
    cut_pairs: int
    seconds: float


def wanted(store: Store, choice: RankerChoice) -> bool:
    """Tell whether the run of ``store``, which was measured, has a ranker."""
    return bool(choice.checkpoints(store))


def measured_reranking(root: Path, store: Store, judged: Judged, choice: RankerChoice) -> RerankedRun | None:
    """Return what ``measure_reranking`` measured below ``root``, None if it did not, or otherwise."""
    path = root / RERANKED
    written = json.loads(path.read_bytes()) if path.exists() else {}
    if written.get("key") != _key(store, judged, choice):
        return None
    before, after = (_point(written, part) for part in ("before", "after"))
    return RerankedRun(before=before, after=after, **written["cost"])


def measure_reranking(root: Path, store: Store, measuring: Measuring, choice: RankerChoice) -> None:
    """Rerank the test queries' hits of the run's best or last checkpoint, and write the figures below ``root``.

    Where the two differ, that one is taken whose hits on dev are better once they are reranked. Finished scores are
    found again after a kill.
    """
    judged, checkpoints = measuring.judged, choice.checkpoints(store)
    dev: dict[int, dict[str, float]] = {}
    if len(checkpoints) > 1:
        for checkpoint in checkpoints:
            dev[checkpoint.number] = _pipeline(root, store, checkpoint, judged.dev, measuring, choice)["after"]["test"]
        checkpoints.sort(key=lambda one: -dev[one.number][METRIC])
    chosen = checkpoints[0]
    told = _pipeline(root, store, chosen, judged.test, measuring, choice)
    named = {"step": chosen.facts["step"], "checkpoint": chosen.number, "dev": dev.get(chosen.number, {})}
    record = {"key": _key(store, judged, choice), **named, **told}
    write_atomic(root / RERANKED, json.dumps(record, indent=1).encode())
    for journal in root.glob(_journal("*", "*")):
        journal.unlink()
    drop_unused(store)


def _key(store: Store, judged: Judged, choice: RankerChoice) -> str:
    return sha256_json([choice.key(judged, checkpoint) for checkpoint in choice.checkpoints(store)])


def _journal(split: str, number: str) -> str:
    return f"rerank-{split}-{number}.scores.jsonl"


def _pipeline(
    root: Path, store: Store, checkpoint: Artifact, queries: QuerySet, measuring: Measuring, choice: RankerChoice
) -> dict[str, Any]:
    """Return the figures of ``queries`` before and after reranking, and its cost, as JSON values."""
    judged, progress = measuring.judged, measuring.progress
    encoder, ranker = measuring.open_encoder(checkpoint), choice.open(checkpoint)
    vectors = encode_corpus(encoder, judged.corpus, store.embeddings, partial(progress, "encode"), measuring.warn)
    deepest = f"R@{max(choice.depth, RUN_DEPTH)}"
    found = evaluate_vectors(encoder, vectors, queries, (*MEASURES, deepest))
    candidates = Candidates(queries.ids, queries.texts, judged.corpus, found.hits)
    path = root / _journal(queries.sha256[:8], str(checkpoint.number))
    journal = Journal(path, journal_key(ranker, candidates, choice.depth), measuring.warn)
    again = rerank(ranker, candidates, choice.depth, partial(progress, f"rerank {queries.split}"), journal)
    figures = per_query(again.hits, queries.judgements, MEASURES)
    return {
        "computed_by": encoder.computed_by,
        "before": _figures({name: found.per_query[name] for name in MEASURES}),
        "after": _figures(figures),
        "cost": reranking_facts(again),
    }


def _figures(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"test": rounded(mean(values)), "per_query": {name: np.round(of, 6).tolist() for name, of in values.items()}}


def _point(written: Mapping[str, Any], part: str) -> Point:
    of = written[part]
    per_query = {name: np.array(values, np.float64) for name, values in of["per_query"].items()}
    dev = written["dev"] if part == "after" else {}
    return Point(written["step"], written["checkpoint"], written["computed_by"], dev, of["test"], per_query)
