"""What one process must learn and several ranks alike: every loss, option, teacher and batch plan, each for few steps.

A case is taken by the learners alone, without a store, from negatives by arithmetic.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from miner.batch_plans import ClusterPlan, StoredPlan
from miner.mixing import MixConfig, MixedPlan
from miner.per_query import PerQueryConfig, PerQueryPool
from retriever.artifacts import Artifact
from retriever.examples import Examples
from retriever.inference import TOKEN_BUDGETS
from retriever.learner import TrainConfig, Warn, open_workplace
from retriever.lora import LoraConfig
from retriever.losses.contrastive import LossConfig
from retriever.losses.ranking import RankingLossConfig
from retriever.negatives import NegativeSet, Verdict, create_negative_set, open_negative_set
from retriever.pair_memory import AuditConfig
from retriever.protocols import IntArray, Negatives
from retriever.ranker_learner import RankerLearner
from retriever.retriever_learner import EncodeQueries, RetrieverLearner, RetrieverParts
from retriever.teacher import Anchor, Teacher, TeacherConfig, asking_encoder, asking_ranker
from retriever.teacher_scores import TeacherScores
from tests.retriever.training_stand_ins import TRAIN, Bench
from tests.stand_ins import HashEncoder, OverlapRanker

STEADY = replace(TRAIN, learning_rate=1e-5, warmup_steps=0, max_grad_norm=1e9)
LORA = LoraConfig(rank=4, alpha=8)
SOURCES = {"ann": 1, "bm25": 8}
RANKER = "ranker.safetensors"
"""What each rank has of a ranker; the first alone saves it as a checkpoint has it."""
SMALL = 24
"""Tokens of a micro-batch that is a text or two, so that ranks have different numbers of them."""

Parts = Callable[[Bench, RetrieverParts], RetrieverParts]


@dataclass(frozen=True)
class Case:
    """What of a Bench, of its retriever's parts and of its ranker is not as ever; ``steps`` of each model."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    parts: Parts = lambda bench, parts: parts
    ranker: Mapping[str, Any] | None = None
    steps: int = 2


@dataclass(frozen=True)
class Bound:
    """What must change nothing: ``changes`` of [train], tokens of a micro-batch, transformers' own forward pass.

    The latter is what trains on a GPU.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    budget: int | None = None
    fast: bool = True


def learn(case: Case, folder: Path, place: Path, bound: Bound) -> None:
    """Take the steps of ``case``, the first without negatives, and save to ``place`` what was learned and told."""
    AcceleratorState._reset_state(False)
    bench = Bench(folder, **{"train": STEADY, "dropout": 0.0, **case.settings})
    bench.train = replace(bench.train, **bound.changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOKEN_BUDGETS, "cpu", bound.budget or TOKEN_BUDGETS["cpu"])
        if not bound.fast:
            for name in ("encoder", "trained_ranker"):
                patch.setattr(f"retriever.{name}.why_not_fast", lambda transformer: "this case")
        facts = _learn(case, bench, place, bench.fail if bound.fast else print)
    (place / "facts.json").write_text(json.dumps(facts))


def _learn(case: Case, bench: Bench, place: Path, warn: Warn) -> list[dict[str, Any]]:
    workplace = open_workplace(bench.train)
    learners: list[RankerLearner | RetrieverLearner] = []
    parts = score = None
    if case.ranker is not None:
        bench.ranker = replace(bench.ranking(), learning_rate=1e-5, warmup_steps=0, **case.ranker)
        parts = bench.ranker_parts()
        assert parts is not None
        if bench.ranker.teacher is not None:
            parts = replace(parts, teacher=OverlapRanker().score)
        ranker = RankerLearner(parts, bench.train, case.steps, workplace, warn)
        learners, score = [ranker], ranker.score
    retrieving = case.parts(bench, bench.retriever_parts())
    learners.append(RetrieverLearner(retrieving, bench.train, case.steps, workplace, warn, score))
    negatives = mined(bench, place)
    facts = []
    for step in range(case.steps):
        for learner in learners:
            if step == 1:
                learner.adopt(negatives)
            facts.append({"loss": learner.step(step), **learner.facts})
    (place / "training").mkdir()
    temperatures = []
    for learner in learners:
        if workplace.ranks.is_first or isinstance(learner, RetrieverLearner):  # transformers saves on the first alone
            temperatures.append(learner.save(place).state.get("temperature"))
    if parts is not None:
        state = {name: tensor.clone() for name, tensor in parts.model.classifier.state_dict().items()}
        save_file(state, place / RANKER)
    return [*facts, {"log τ": temperatures[-1]}]


def mined(bench: Bench, place: Path) -> Artifact:
    """Return a negative set in which every passage is a candidate of every query, in an order of its own."""
    folder = place / "negatives"
    folder.mkdir(parents=True)
    queries, passages = len(bench.queries), len(bench.corpus)
    pool = create_negative_set(folder, queries, passages, 1)
    pool.positives[:, 0] = np.arange(queries)
    pool.passages[:] = (np.arange(passages) * 7 + np.arange(queries)[:, None]) % passages
    pool.scores[:] = np.linspace(0.9, 0.1, passages)
    pool.sources[:] = 1
    pool.verdicts[:] = np.where(pool.passages == pool.positives, Verdict.POSITIVE, Verdict.ELIGIBLE)
    pool.flush()
    facts = {"step": 0, "sources": SOURCES}
    return Artifact("negatives", 0, folder, {"facts": facts, "parents": {"generation": 0, "checkpoint": 0}})


# ---- what is not as ever


def judged(bench: Bench, parts: RetrieverParts) -> RetrieverParts:
    """Let verdicts call every seventh passage relevant to a query, whichever query brought it."""
    passages = len(bench.corpus)

    def relevant(query_row: int) -> IntArray:
        return np.arange(query_row % 7, passages, 7, dtype=np.int32)

    examples = Examples(bench.corpus, bench.queries, in_batch=True, seed=3, judged_relevant=relevant)
    return replace(parts, examples=examples)


def guided(bench: Bench, parts: RetrieverParts) -> RetrieverParts:
    """A frozen guide."""
    return replace(parts, guide=HashEncoder(8))


class Nearest:
    """A NegativeSource that searches vectors by arithmetic with the present query tower."""

    def __init__(self, bench: Bench, encode: EncodeQueries, count: int) -> None:
        vectors = bench.open_vectors(Artifact("generations", 0, bench.folder, {}))
        self._vectors = vectors(np.arange(len(bench.corpus), dtype=np.int32))
        self._encode, self._count = encode, count

    def draw(self, query_rows: IntArray, step: int) -> Negatives:
        """Return the passages that score highest but for the query's own."""
        scores = self._encode(query_rows) @ self._vectors.T
        scores[np.arange(len(query_rows)), query_rows] = -np.inf
        rows = np.argsort(-scores, axis=1, kind="stable")[:, : self._count].astype(np.int32)
        return Negatives(rows, np.take_along_axis(scores, rows, axis=1), np.ones(rows.shape, np.bool_))


def live(bench: Bench, parts: RetrieverParts) -> RetrieverParts:
    """Negatives that the query tower finds at each step, as ADORE has them."""
    return replace(parts, open_source=lambda artifact, batches, encode: Nearest(bench, encode, 5))


def per_query(bench: Bench, parts: RetrieverParts) -> RetrieverParts:
    """Negatives that stay until they have become easy, which here is soon."""
    config = PerQueryConfig(drop=1e-7, below=2.0, first=3)
    return replace(
        parts, open_source=lambda artifact, batches, encode: PerQueryPool(open_negative_set(artifact.path), config, 2)
    )


def b3(bench: Bench, parts: RetrieverParts) -> RetrieverParts:
    """Batches that came with the set."""
    batches = np.random.default_rng(0).permutation(len(bench.queries)).astype(np.int32).reshape(-1, 4)
    usual = parts.open_planner
    return replace(
        parts,
        open_planner=lambda artifact: usual(None) if artifact is None else StoredPlan(batches, artifact.number, 3),
    )


def ngame(bench: Bench, parts: RetrieverParts) -> RetrieverParts:
    """Batches of clusters of the embeddings that training makes."""
    return replace(
        parts, open_planner=lambda artifact: ClusterPlan(len(bench.queries), 4, double_every=1, seed=3), keep_bank=True
    )


def mixed(bench: Bench, parts: RetrieverParts) -> RetrieverParts:
    """Batches of one of two data sets each."""
    names = ["a" if row < 8 else "b" for row in range(len(bench.queries))]
    plan = MixedPlan(names, MixConfig("weights", {"a": 2, "b": 1}), 4, seed=3)
    return replace(parts, open_planner=lambda artifact: plan, repeats=True)


def scored(config: TeacherConfig) -> Callable[[Bench], Teacher]:
    """Return a teacher whose scores come with the set, some of them missing."""

    def teacher(bench: Bench) -> Teacher:
        def open_scores(artifact: Artifact) -> TeacherScores:
            pool: NegativeSet = open_negative_set(artifact.path)
            scores = (3 * np.cos(pool.passages + pool.queries[:, None])).astype(np.float32)
            scores[:, ::9] = np.nan
            return TeacherScores(pool, scores, np.full(pool.positives.shape, 2, np.float32))

        return Teacher(config, open_scores=open_scores)

    return teacher


def asked(config: TeacherConfig) -> Callable[[Bench], Teacher]:
    """Return a ranker or an encoder that is asked at each step, or an anchor that moves."""

    def teacher(bench: Bench) -> Teacher:
        if config.name == "anchor":
            anchor = Anchor(bench.model(), config.momentum or 0.5, torch.device("cpu"))
            return Teacher(config, asking_encoder(anchor), anchor=anchor)
        return Teacher(
            config, asking_encoder(HashEncoder(32)) if config.gives_vectors else asking_ranker(OverlapRanker().score)
        )

    return teacher


def by_loss(parts: Parts = lambda bench, parts: parts, **keys: Any) -> Case:
    return Case({"loss": LossConfig(**keys)}, parts)


def by_train(**keys: Any) -> dict[str, TrainConfig]:
    return {"train": replace(STEADY, **keys)}


def taught(make: Callable[[TeacherConfig], Callable[[Bench], Teacher]], name: str, **keys: Any) -> Case:
    return Case({"teacher": make(TeacherConfig(name, **keys))})


def ranking(loss: str, **keys: Any) -> Case:
    return Case(ranker={"loss": RankingLossConfig(loss), **keys})  # type: ignore[arg-type]  # any of its names


CASES: dict[str, Case] = {
    "infonce": by_loss(),
    "decoupled": by_loss(name="decoupled"),
    "gce": by_loss(name="gce"),
    "mw": by_loss(name="mw"),
    "lambdarank": by_loss(name="lambdarank"),
    "ccl": by_loss(name="ccl"),
    "multi_similarity": by_loss(name="multi_similarity"),
    "alone": by_loss(in_batch=False),
    "symmetric": by_loss(symmetric=True, margin=0.1),
    "debias": by_loss(debias=0.1, hardness=1.0),
    "pseudo_positives": by_loss(pseudo_positives=0.1),
    "hardness": by_loss(name="mw", hardness=2.0),
    "guide_max": by_loss(guided, guide="start", guide_max=0.2),
    "guide_decay": by_loss(guided, guide="start", guide_decay=0.2),
    "cosine": by_loss(temperature_schedule="cosine", temperature_period=4),
    "learned": by_loss(temperature_schedule="learned"),
    "learned mw": by_loss(
        guided, name="mw", temperature_schedule="learned", hardness=1.0, guide="start", guide_max=0.3
    ),
    "judged": Case(parts=judged),
    "max loss": Case(by_train(num_negatives=1, drawn_negatives=2)),
    "uneven": Case(by_train(batch_size=5)),
    "untied": Case({"tied": False}),
    "adore": Case({**by_train(towers="query"), "tied": False, "loss": LossConfig("lambdarank", in_batch=False)}, live),
    "per query": Case(parts=per_query, steps=6),
    "b3": Case(parts=b3),
    "mix": Case(parts=mixed),
    "ngame": Case(parts=ngame, steps=4),
    "audit": Case({"audit": AuditConfig(exclude="drop", beta=0.5)}, steps=4),
    "stored kl": taught(scored, "stored", over="batch"),
    "stored soft_infonce": taught(scored, "stored", loss="soft_infonce"),
    "head": taught(scored, "stored", head=True),
    "live margin_mse": taught(asked, "live", loss="margin_mse", live=True),
    "encoder kl": taught(asked, "encoder", kind="encoder", over="batch"),
    "encoder cosent": taught(asked, "encoder", kind="encoder", loss="cosent"),
    "encoder embedding": taught(asked, "encoder", kind="encoder", loss="embedding"),
    "anchor": taught(asked, "anchor", momentum=0.5, over="batch"),
    "ar2": Case({"teacher": lambda bench: Teacher(TeacherConfig("ranker", loss="ar2", contrastive=0.5))}, ranker={}),
    "bf16": Case(by_train(precision="bf16"), ranker={}),
    "lora": Case({"lora": LORA, "tied": False}, ranker={"lora": LORA}),
    "lora bf16": Case({"lora": LORA, **by_train(precision="bf16")}, ranker={"lora": LORA}),
    "cet": ranking("cet"),
    "ranknet": ranking("ranknet"),
    "ranker's lambdarank": ranking("lambdarank"),
    "ranker's margin_mse": ranking("margin_mse", teacher="overlap"),
    "asymmetric": ranking("asymmetric"),
    "em": ranking("em"),
    "dice": ranking("dice", batch_size=4),
}
BOUNDS: dict[str, Bound] = {
    "whole": Bound(),
    "cached": Bound({"grad_cache": True}, SMALL),
    "checkpointed": Bound({"gradient_checkpointing": True}, SMALL),
    "transformers": Bound(budget=SMALL, fast=False),
    "transformers, cached": Bound({"grad_cache": True, "gradient_checkpointing": True}, SMALL, fast=False),
}
PATHS = ("infonce", "learned", "head", "untied", "ar2", "cet", "bf16", "lora", "lora bf16")
TAKEN = [(name, bound) for name in CASES for bound in BOUNDS if bound in ("whole", "cached") or name in PATHS]
"""What two ranks take: each case as it is and by GradCache, some by every path."""
