"""Runs of a comparison that nobody trained, and results of them. They do not know pytest."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from app.comparing import run_json
from app.findings import RunResult, as_json, find
from app.run_curve import Point
from app.run_history import Costs, Refresh

QUERIES = 60


def point(step: int, dev: float, test: float | None, seed: int = 0) -> Point:
    """A checkpoint whose queries scatter around ``test`` alike for all systems of one seed."""
    if test is None:
        return Point(step, step, "torch fp32", {"nDCG@10": dev, "RR@10": dev})
    noise = np.random.default_rng(seed).normal(0, 0.1, QUERIES)
    values = test + noise - noise.mean()
    means = {"nDCG@10": test, "RR@10": test - 0.1, "AUC": 0.9}
    return Point(step, step, "torch fp32", {"nDCG@10": dev, "RR@10": dev}, means, {"nDCG@10": values, "RR@10": values})


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
        sessions=1,
        warnings=(),
        code_version="0.1+abc",
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
        "machine": {"processor": "a processor", "cpus": 2, "system": "Linux"},
        "systems": {"static": {"refresh.trigger": "once"}, "refreshed": {}},
        "runs": [run_json(run) for run in runs],
        "failed": [],
        "findings": as_json(find(runs, ["static", "refreshed"], "static")),
        **changes,
    }
