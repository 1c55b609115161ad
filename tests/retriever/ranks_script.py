"""What each of two ranks does: the runs below, one after the other, for test_ranks.py, then all of rank_cases.py."""

import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

from retriever.artifacts import Artifact
from retriever.inference import TOKEN_BUDGETS
from retriever.learner import open_workplace
from retriever.losses.contrastive import LossConfig
from retriever.pair_memory import AuditConfig
from retriever.phases import PhasesConfig
from retriever.refresh_policy import RefreshConfig
from retriever.teacher import Anchor, Teacher, TeacherConfig, asking_encoder, asking_ranker
from tests.retriever.rank_cases import BOUNDS, CASES, LORA, TAKEN, learn
from tests.retriever.training_stand_ins import TRAIN, Bench, Idle, MinesAtOnce
from tests.stand_ins import OverlapRanker

EXACT = replace(TRAIN, max_steps=3, learning_rate=1e-5, warmup_steps=0, max_grad_norm=1e9)
LATE_SECONDS = 1.0


def exact(folder: Path) -> Bench:
    """Three steps with in-batch negatives, hard ones and a shared mask, without dropout."""
    return Bench(folder, train=EXACT, refresh=RefreshConfig(trigger="steps:2"), loss=LossConfig(), dropout=0.0)


def anchored(folder: Path) -> Bench:
    """The same with a moving anchor over the whole batch; its vectors are encoded in shares."""

    def teacher(bench: Bench) -> Teacher:
        anchor = Anchor(bench.model(), 0.5, torch.device("cpu"))
        return Teacher(TeacherConfig("anchor", over="batch", momentum=0.5), asking_encoder(anchor), anchor=anchor)

    bench = exact(folder)
    bench.teacher = teacher
    return bench


def distilled(folder: Path) -> Bench:
    """The same with a ranker that scores each group, a share of them a rank, and AR2's loss alone."""
    bench = exact(folder)
    config = TeacherConfig("tiny", loss="ar2", contrastive=0.0, live=True)
    bench.teacher = lambda bench: Teacher(config, asking_ranker(OverlapRanker().score))
    return bench


def run_anchored(folder: Path, rank: int) -> dict[str, Any]:
    """By GradCache."""
    TOKEN_BUDGETS["cpu"] = 24
    bench = anchored(folder)
    bench.train = replace(EXACT, grad_cache=True)
    outcome = bench.run()
    return {"reason": outcome.reason, "draws": bench.draws}


def run_distilled(folder: Path, rank: int) -> dict[str, Any]:
    """Without GradCache."""
    bench = distilled(folder)
    outcome = bench.run()
    return {"reason": outcome.reason, "draws": bench.draws}


def adapted(folder: Path) -> Bench:
    """Ranker and retriever in turn, by adapters both, with the memory of [audit]."""
    bench = ranked(folder)
    bench.lora, bench.audit = LORA, AuditConfig(exclude="drop", beta=0.5)
    bench.train = replace(bench.train, max_steps=6, learning_rate=1e-4)
    assert bench.ranker is not None
    bench.ranker = replace(bench.ranker, lora=LORA)
    return bench


def run_adapted(folder: Path, rank: int) -> dict[str, Any]:
    """The second rank alone is told to stop; then both go on."""
    bench = adapted(folder)
    if rank == 1:
        bench.draws = StopsTheRun(bench)
    first, second = bench.run(), bench.run()
    return {"reasons": [first.reason, second.reason], "draws": bench.draws}


class MinesLater(MinesAtOnce):
    """A refresher that publishes while the trainer steps, at no step in particular."""

    def marked(self, checkpoint: Artifact) -> None:
        """Return at once; the set comes soon."""
        threading.Timer(0.05, super().marked, (checkpoint,)).start()


def run_exact(folder: Path, rank: int) -> dict[str, Any]:
    """The second rank comes late: when the first has published checkpoint 0 already."""
    bench = exact(folder)
    trainer = bench.trainer()
    time.sleep(LATE_SECONDS * rank)
    outcome = trainer.run()
    return {"reason": outcome.reason, "draws": bench.draws}


def run_cached(folder: Path, rank: int) -> dict[str, Any]:
    """The same, by GradCache with a micro-batch a text or two: the ranks have different numbers of them."""
    TOKEN_BUDGETS["cpu"] = 24
    bench = exact(folder)
    bench.train = replace(EXACT, grad_cache=True)
    outcome = bench.run()
    return {"reason": outcome.reason, "draws": bench.draws}


def ranked(folder: Path) -> Bench:
    """A step of the ranker and one of the retriever in turn, from negatives of two sources."""
    bench = exact(folder)
    bench.refresher.sources = {"ann": 1, "bm25": 8}
    bench.train, bench.phases = replace(EXACT, max_steps=4), PhasesConfig(1, 1)
    bench.ranker = replace(bench.ranking(), learning_rate=1e-5, warmup_steps=0)
    return bench


def run_ranked(folder: Path, rank: int) -> dict[str, Any]:
    """With micro-batches of a pair or two, so that the ranks have different numbers of them."""
    TOKEN_BUDGETS["cpu"] = 8
    bench = ranked(folder)
    outcome = bench.run()
    told = bench.told("step") if rank == 0 else []
    sources = [one["by_source"] for one in told]
    return {
        "reason": outcome.reason,
        "draws": bench.ranker_draws,
        "losses": [one["loss"] for one in told],
        "sources": sources,
    }


def run_ready(folder: Path, rank: int) -> dict[str, Any]:
    """Sets that come at any time."""
    bench = Bench(folder, train=replace(TRAIN, max_steps=12), refresh=RefreshConfig(trigger="steps:4"))
    bench.refresher = MinesLater(bench.store) if rank == 0 else Idle(bench.store)
    bench.hears = lambda event, fields, stop: time.sleep(0.02)
    outcome = bench.run()
    return {"reason": outcome.reason, "draws": bench.draws}


class StopsTheRun(list[tuple[int, int]]):
    """Draws of one rank, which is told to stop while it draws the last batch of step 0."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self._bench = bench

    def append(self, drawn: tuple[int, int]) -> None:
        """Note one draw."""
        super().append(drawn)
        if len(self) == EXACT.accumulation:
            self._bench.stop.set()


def run_interrupted(folder: Path, rank: int) -> dict[str, Any]:
    """The second rank alone is told to stop; then both go on."""
    bench = exact(folder)
    if rank == 1:
        bench.draws = StopsTheRun(bench)
    first, second = bench.run(), bench.run()
    return {"reasons": [first.reason, second.reason], "steps": [first.step, second.step], "draws": bench.draws}


RUNS = (run_exact, run_ready, run_interrupted, run_cached, run_ranked, run_anchored, run_distilled, run_adapted)


def main(folder: Path) -> None:
    """Write what this rank saw."""
    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # nothing cuts the power
    open_workplace(EXACT)
    state, group = PartialState(), dist.group.WORLD
    assert group is not None
    found: dict[str, Any] = {"timeout": group._get_backend(torch.device("cpu")).options._timeout.days}
    for run in RUNS:
        place = folder / run.__name__
        if state.is_main_process:
            place.mkdir()
            exact(place)
        state.wait_for_everyone()
        found[run.__name__] = run(place, state.process_index)
    for name, bound in TAKEN:
        place = folder / bound / name / f"rank{state.process_index}"
        learn(CASES[name], folder / "run_exact", place, BOUNDS[bound])
    (folder / f"rank{state.process_index}.json").write_text(json.dumps(found))
    state.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
