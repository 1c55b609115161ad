"""The demo: data from this environment, a training run on it, and the figures before and after.

Does not know how any of that works.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.composition import Run, open_run
from app.config import read_config
from app.evaluating import evaluate_exactly
from app.live import progress_view
from app.options import warn
from app.progress import Meter
from app.python_dataset import PythonDatasetConfig, write_python_dataset
from app.shortening import shortener
from app.training import TrainingResult, prepare_store, put_back_on_error, run_training
from miner.generations import BASELINE
from retriever.artifacts import BEST
from retriever.data import QuerySet
from retriever.durable import read_lines, write_atomic
from retriever.errors import HoneError
from retriever.ingest import load_query_set
from retriever.store import Store

RUN_FILE = """\
# What `make demo` runs. `hone init DATA` writes one for your own data.
seed = 13
[data]
path = "data"
[model]
name = "minilm"
query_max_length = 96
passage_max_length = 96
dropout = 0.0
[train]
max_steps = 72
batch_size = 32
num_negatives = 1
learning_rate = 5e-5
warmup_steps = 7
precision = "auto"
save_every = 24
[loss]
temperature = 0.05
[negatives]
depth = 100
[refresh]
trigger = "steps:24"
adopt = "scheduled"          # so that the same packages give the same weights each time
lag = 16
[index]
precision = "auto"
"""
TOKENS = 96
"""Longest passage: the data is cut, not the encoder's input, so that every tool measures the same texts."""
METRICS = ("nDCG@10", "RR@10", "R@100", "AUC")


@dataclass(frozen=True)
class Demonstration:
    """Where the demo's artifacts lie, what it measured, and queries that a person may try."""

    store: Store
    before: Mapping[str, float]
    after: Mapping[str, float]
    training: TrainingResult
    generations: list[dict[str, Any]]
    steps_during_rebuild: list[int]
    queries: list[str]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return the closing line."""
        outcome = self.training.outcome
        return {
            "before": dict(self.before),
            "after": dict(self.after),
            "trainer_pid": os.getpid(),
            "refresher_pid": self.training.refresher_pid,
            "generations": self.generations,
            "steps_during_rebuild": self.steps_during_rebuild,
            "negative_sets_adopted": outcome.negative_sets_adopted,
            "max_staleness_steps": outcome.max_staleness_steps,
            "seconds": self.seconds,
        }


def run_demo(folder: Path) -> Demonstration:
    """Make ``folder``/data, train in ``folder``/store, and evaluate checkpoint 0 and the best generation on test.

    An earlier demo's store is moved aside. Raises HoneError where a part fails.
    """
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with progress_view() as report:
        write_python_dataset(
            folder / "data", PythonDatasetConfig(), None, Meter(report).phase("passages"), shortener("minilm", TOKENS)
        )
    config_path = folder / "run.toml"
    write_atomic(config_path, RUN_FILE.encode())
    root = folder / "store"
    with put_back_on_error(root, prepare_store(root, read_config(config_path).sha256, resume=False, new=True)):
        run = open_run(config_path, root, skip_missing=False, warn=warn)
    training = run_training(run, config_path, "child")
    if training.outcome.reason == "interrupted":
        raise HoneError(
            f"interrupted at step {training.outcome.step}; `hone train {config_path} --store {root}` goes on from there"
        )
    test = load_query_set(folder / "data", "test", run.corpus, warn=warn)
    generations, steps = rebuilds(read_lines(root / "events.jsonl"))
    return Demonstration(
        store=run.store,
        before=_figures(run, BASELINE, test),
        after=_figures(run, BEST, test),
        training=training,
        generations=generations,
        steps_during_rebuild=steps,
        queries=list(test.texts[:3]),
        seconds=round(time.monotonic() - started, 1),
    )


def _figures(run: Run, pointer: str, test: QuerySet) -> dict[str, float]:
    """Measure in float32, so that every tool gets the same figures; the generations' own vectors are bf16."""
    with progress_view() as report:
        progress = Meter(report).phase(f"evaluate {pointer}")
        metrics = evaluate_exactly(run.store, pointer, run.corpus, test, progress).metrics
    return {name: round(metrics[name], 4) for name in METRICS}


def rebuilds(events: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[int]]:
    """Return each published generation (number, step, weights_sha256) and the steps trained while it was built."""
    steps = [event["time"] for event in events if event["event"] == "step"]
    generations, during = [], []
    started = 0.0
    for event in events:
        if event["event"] == "build_started":
            started = event["time"]
        elif event["event"] == "generation_published":
            generations.append({key: event[key] for key in ("number", "step", "weights_sha256")})
            during.append(sum(started <= at <= event["time"] for at in steps))
    return generations, during
