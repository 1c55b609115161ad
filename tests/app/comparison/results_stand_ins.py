"""Runs of a comparison that nobody trained, and results of them. They do not know pytest."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from app.comparison.carrying_out import run_json
from app.comparison.findings import RunResult, as_json, find
from app.comparison.reranked_run import RerankedRun
from app.comparison.run_curve import Judged, Measuring, Point
from app.comparison.run_history import Aged, Costs, Refresh
from retriever.artifacts import Artifact
from retriever.data import Corpus
from retriever.ingest import ingest_corpus, load_query_set
from retriever.store import Store
from tests.stand_ins import HashEncoder, write_tiny_data

QUERIES = 60
MACHINE = {"processor": "a processor", "cpus": 2, "system": "Linux"}
STEPS = {0: 0, 4: 5, 6: 2, 10: 3, 11: 4}
"""Steps of the checkpoints, and the seed of the encoder that stands for each one's weights."""


class Stop(Exception):
    """Somebody asked to stop."""


class Bed:
    """A store of checkpoints without weights, measured by encoders of hashed words."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        data = write_tiny_data(folder / "data")
        self.store = Store(folder / "store", create=True)
        self.corpus = Corpus(ingest_corpus(self.store, data))
        for step, seed in STEPS.items():
            self.publish(step, seed)
        dev, test = (load_query_set(data, split, self.corpus, warn=self.never) for split in ("dev", "test"))
        self.judged = Judged(self.corpus, dev, test, {"engine": "hashing"})
        self.opened: list[int] = []

    def publish(self, step: int, seed: int, **facts: object) -> None:
        with self.store.checkpoints.stage(parents={"corpus": 0}) as draft:
            (draft.path / "weights").write_text(str(seed))
            draft.facts.update(step=step, weights_sha256=f"weights-{seed}", model={"name": "hash"}, **facts)

    def never(self, message: str) -> None:
        raise AssertionError(message)

    def open_encoder(self, checkpoint: Artifact) -> HashEncoder:
        self.opened.append(checkpoint.facts["step"])
        seed = int(checkpoint.facts["weights_sha256"].removeprefix("weights-"))
        # Fewer dimensions at first: dev gets better until step 10, and is worse at the last.
        return HashEncoder(dimensions={0: 3, 5: 4, 2: 6, 3: 40, 4: 5}.get(seed, 8), seed=seed)

    def measuring(self, progress: Callable[[str, int, int], None] | None = None) -> Measuring:
        return Measuring(self.judged, self.open_encoder, progress or (lambda phase, done, total: None), self.never)


def point(step: int, dev: float, test: float | None, seed: int = 0) -> Point:
    """A checkpoint whose queries scatter around ``test`` alike for all systems of one seed."""
    if test is None:
        return Point(step, step, "torch fp32", {"nDCG@10": dev, "RR@10": dev})
    noise = np.random.default_rng(seed).normal(0, 0.1, QUERIES)
    values = test + noise - noise.mean()
    means = {"nDCG@10": test, "RR@10": test - 0.1, "AUC": 0.9}
    return Point(step, step, "torch fp32", {"nDCG@10": dev, "RR@10": dev}, means, {"nDCG@10": values, "RR@10": values})


def reranked(seed: int, before: float, after: float) -> RerankedRun:
    """What a ranker made of a checkpoint of step 50, of a hundred pairs a query."""
    measures = ("nDCG@10", "RR@10")

    def of(value: float) -> Point:
        whole = point(50, 0.5, value, seed)
        test = {name: (whole.test or {})[name] for name in measures}
        return replace(whole, test=test)

    return RerankedRun(100, of(before), of(after), 100 * QUERIES, 600, 30.0)


def run_of(
    system: str,
    seed: int,
    points: Sequence[Point],
    seconds: Sequence[float],
    ended: str = "steps",
    refreshes: Sequence[Refresh] = (),
) -> RunResult:
    """A run with these points at these seconds."""
    return RunResult(
        system=system,
        seed=seed,
        folder=f"{system}-{seed}-0123abcd",
        ended=ended,
        points=points,
        seconds=seconds,
        refreshes=refreshes,
        costs=Costs(seconds[-1] - 1.0, 1.0, 3.0, 0.5, 0.25),
        peak={"trainer": 500_000_000, "refresher": 400_000_000},
        cpu={"trainer": seconds[-1], "refresher": 10.0},
        machines=[MACHINE],
        sessions=1,
        warnings=(),
        code_version="0.1+abc",
        aged=[Aged(mark.step + 10, 0.6, -0.05, 0.25 / (place + 1)) for place, mark in enumerate(refreshes)],
    )


def some_runs() -> list[RunResult]:
    """Three seeds each of "static" and of "refreshed", which is .05 better and takes half as long again."""
    runs = []
    for seed in (1, 2, 3):
        shift = 0.002 * seed
        static = [point(0, 0.3, 0.28), point(50, 0.4 + shift, 0.42 + shift, seed), point(100, 0.39, 0.41 + shift, seed)]
        better = [point(0, 0.3, 0.28), point(50, 0.41, 0.43 + shift, seed), point(100, 0.46, 0.47 + shift, seed)]
        marks = [Refresh(0, 20, 1.0, 14.0), Refresh(50, 70, 46.0, 60.0)]
        runs.append(run_of("static", seed, static, [1.0, 21.0, 41.0 + seed], refreshes=marks[:1]))
        runs.append(run_of("refreshed", seed, better, [1.0, 41.0, 81.0 + seed], refreshes=marks))
    return runs


def results_of(runs: Sequence[RunResult], **changes: Any) -> dict[str, Any]:
    """What a comparison tells of ``runs``, before the parts of ``changes`` are replaced."""
    return {
        "format": 1,
        "title": "compare",
        "data": {
            "path": "data",
            "passages": 1000,
            "train": "train",
            "dev": {"split": "dev", "queries": 40},
            "test": {"split": "test", "queries": QUERIES, "is_dev": False},
        },
        "baseline": "static",
        "seeds": [1, 2, 3],
        "budget": {"steps": 100, "minutes": None},
        "every": 50,
        "computed_by": ["torch fp32"],
        "machines": [MACHINE],
        "systems": {"static": {"refresh.trigger": "once"}, "refreshed": {}},
        "runs": [run_json(run) for run in runs],
        "failed": [],
        "findings": as_json(find(runs, ["static", "refreshed"], "static")),
        **changes,
    }
