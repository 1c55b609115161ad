from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app import demonstration
from app.composition import Run
from app.config import read_config
from app.demonstration import METRICS, RUN_FILE, rebuilds, run_demo
from app.training import TrainingResult, run_training
from miner.generations import BASELINE
from retriever.errors import HoneError
from retriever.store import Store
from retriever.trainer import Outcome
from tests.app.command_line import contents
from tests.stand_ins import write_tiny_data


def event(name: str, at: float, **fields: Any) -> dict[str, Any]:
    return {"event": name, "time": at, **fields}


def published(number: int, at: float) -> dict[str, Any]:
    facts = {"step": number * 10, "weights_sha256": f"w{number}", "dev": {"nDCG@10": 0.5}, "served": True}
    return event("generation_published", at, number=number, **facts)


def test_rebuilds_counts_the_steps_between_a_build_and_its_publication() -> None:
    log = [
        event("build_started", 1.0, checkpoint=0),
        published(0, 2.0),
        *(event("step", 3.0 + n, step=n + 1) for n in range(4)),
        event("build_started", 4.5, checkpoint=1),
        event("step", 7.5, step=5),
        published(1, 8.0),
        event("step", 9.0, step=6),
        event("build_started", 10.0, checkpoint=2),
        event("build_started", 12.0, checkpoint=2),
        event("step", 11.0, step=7),
        event("step", 13.0, step=8),
        published(2, 14.0),
    ]
    generations, during = rebuilds(log)
    assert generations == [{"number": n, "step": n * 10, "weights_sha256": f"w{n}"} for n in range(3)]
    assert during == [0, 3, 1], "a build that is begun again counts from there"
    assert rebuilds([]) == ([], [])


def test_the_run_that_it_writes_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RUN_FILE)
    config = read_config(tmp_path / "run.toml")
    assert config.data.path == "data" and config.model.name == "minilm"
    assert config.train.max_steps // int(config.refresh.trigger.removeprefix("steps:")) >= 3, "three refreshes"


@pytest.fixture
def small(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the demo work on tiny data with the tiny model, and train within its own process."""

    def write(folder: Path, *arguments: object, **options: object) -> None:
        if not folder.exists():
            write_tiny_data(folder, passages=120, queries=80)

    monkeypatch.setattr(demonstration, "write_python_dataset", write)
    text = RUN_FILE.replace('"auto"', '"fp32"').replace("96", "64")
    for old, new in (
        ("max_steps = 72", "max_steps = 6"),
        ("= 7\n", "= 1\n"),
        ("24", "2"),
        ("lag = 16", "lag = 1"),
        ("size = 32", "size = 4"),
    ):
        assert old in text
        text = text.replace(old, new)
    text = text.replace("minilm", str(tiny / "model"))
    monkeypatch.setattr(demonstration, "RUN_FILE", text)
    monkeypatch.setattr(demonstration, "run_training", lambda run, path, where: run_training(run, path, "inline"))


@pytest.mark.usefixtures("small")
def test_before_is_the_untrained_model_and_after_the_best_generation(tmp_path: Path) -> None:
    done = run_demo(tmp_path / "demo")
    assert {*done.before} == {*done.after} == {*METRICS}
    store = Store(tmp_path / "demo/store")
    assert store.generations.pointed(BASELINE) == 0
    line = done.as_json()
    assert line["before"] == done.before and line["negative_sets_adopted"] == 3
    assert [generation["step"] for generation in line["generations"]] == [0, 2, 4, 6]
    assert len(line["steps_during_rebuild"]) == 4 and len(done.queries) == 3
    assert 0 < line["max_staleness_steps"] == done.training.outcome.max_staleness_steps <= 3


@pytest.mark.usefixtures("small")
def test_an_interrupted_demo_says_so_and_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = TrainingResult(Outcome("interrupted", 17, 2, 1, 9), None, 3.0, 0)
    monkeypatch.setattr(demonstration, "run_training", lambda run, path, where: interrupted)
    folder = tmp_path / "demo"
    with pytest.raises(HoneError, match=rf"step 17; `hone train {folder}/run\.toml --store {folder}/store` goes on"):
        run_demo(folder)


@pytest.mark.usefixtures("small")
def test_an_earlier_demo_is_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demo"
    earlier = Store(folder / "store", create=True)
    (earlier.root / "note").write_text("earlier")
    before = contents(earlier.root)
    failed = HoneError("no luck")

    def train(run: Run, *arguments: object) -> TrainingResult:
        assert run.config == replace(run.config) and not (run.store.root / "note").exists()
        raise failed

    monkeypatch.setattr(demonstration, "run_training", train)
    with pytest.raises(HoneError, match="no luck"):
        run_demo(folder)
    (aside,) = folder.glob("store.old-*")
    assert contents(aside) == before
