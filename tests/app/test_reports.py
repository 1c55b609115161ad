import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]  # it has no types
    EventAccumulator,
)

from app.reports import all_of, event_log, forwarded, json_lines, tensorboard
from retriever.durable import read_lines
from retriever.store import Store

STEP = {"loss": 0.5, "learning_rate": 1e-3, "steps_per_second": 2.0, "staleness": 7}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", create=True)


def collecting(events: list[dict[str, Any]]) -> Callable[..., None]:
    return lambda event, **fields: events.append({"event": event, **fields})


def test_all_hear_everything_in_order() -> None:
    first: list[dict[str, Any]] = []
    second: list[dict[str, Any]] = []
    report = all_of(collecting(first), collecting(second))
    report("step", step=1)
    report("warning", message="no")
    assert first == second == [{"event": "step", "step": 1}, {"event": "warning", "message": "no"}]


def test_json_lines_are_one_object_a_line() -> None:
    stream = io.StringIO()
    report = json_lines(stream)
    report("warning", message="two\nlines")
    report("step", step=3, loss=0.25)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["message"] == "two\nlines"
    assert {key: second[key] for key in ("event", "step", "loss")} == {"event": "step", "step": 3, "loss": 0.25}
    assert abs(time.time() - second["time"]) < 60


def test_the_event_log_names_who_speaks(store: Store) -> None:
    event_log(store, "refresher")("build_started", checkpoint=4, step=40)
    (line,) = read_lines(store.root / "events.jsonl")
    line.pop("time")
    assert line == {"event": "build_started", "source": "refresher", "checkpoint": 4, "step": 40}


def test_tensorboard_has_the_curves_of_training_and_of_dev(tmp_path: Path) -> None:
    with tensorboard(tmp_path) as report:
        for step in (1, 2):
            report("step", step=step, of=2, negatives=None, generation=None, **STEP)
        report("generation_published", number=0, step=2, dev={"nDCG@10": 0.625}, served=True)
        report("generation_published", number=1, step=2, dev={})
        report("staleness", step=2, overlap=0.5, drift=-0.25, easy=0.125)
        report("warning", message="not drawn")
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    names = board.Tags()["scalars"]
    measured = [f"staleness/{name}" for name in ("drift", "easy", "overlap")]
    assert sorted(names) == ["dev/nDCG@10", *measured, *(f"train/{name}" for name in sorted(STEP))]
    assert board.Scalars("staleness/overlap")[0].value == 0.5
    losses = board.Scalars("train/loss")
    assert [(point.step, point.value) for point in losses] == [(1, 0.5), (2, 0.5)]
    (dev,) = board.Scalars("dev/nDCG@10")
    assert (dev.step, dev.value) == (2, 0.625)


def test_what_others_say_is_passed_on_and_nothing_else(store: Store) -> None:
    seen: list[dict[str, Any]] = []
    event_log(store, "refresher")("build_started", checkpoint=0)
    with forwarded(store, "trainer", collecting(seen)):
        event_log(store, "trainer")("step", step=1)
        event_log(store, "refresher")("progress", phase="encode", done=1, total=2)
        store.log_event("generation_published", number=1, step=0, dev={})
    event_log(store, "refresher")("drained")
    assert seen == [
        {"event": "progress", "phase": "encode", "done": 1, "total": 2},
        {"event": "generation_published", "number": 1, "step": 0, "dev": {}},
    ], "neither what came before, nor the trainer's own, nor what comes after"


def test_no_line_is_lost_or_split_however_it_is_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines arrive in pieces, several at once, and while the reader is between two looks."""
    monkeypatch.setattr("app.reports.TAIL_SECONDS", 0.001)
    seen: list[dict[str, Any]] = []
    lines = [json.dumps({"time": 0.0, "event": "e", "number": n, "text": "ü" * (n % 50)}) + "\n" for n in range(600)]
    content = "".join(lines).encode()

    def write() -> None:
        with (store.root / "events.jsonl").open("ab", buffering=0) as file:
            for start in range(0, len(content), 37):
                file.write(content[start : start + 37])
                if start % 3 == 0:
                    time.sleep(0.0001)

    with forwarded(store, "trainer", collecting(seen)):
        writer = Thread(target=write)
        writer.start()
        writer.join()
    assert [event["number"] for event in seen] == list(range(600))
    assert [len(event["text"]) for event in seen] == [n % 50 for n in range(600)]


def test_a_line_that_a_crash_tore_off_is_neither_passed_on_nor_in_the_way(store: Store) -> None:
    seen: list[dict[str, Any]] = []
    path = store.root / "events.jsonl"
    with forwarded(store, "trainer", collecting(seen)):
        path.write_bytes(b'{"time":0.0,"event":"whole"}\n{"time":0.0,"ev')
        time.sleep(0.7)  # longer than the pause between two looks
        assert [event["event"] for event in seen] == ["whole"]
        store.log_event("next")
        assert path.read_bytes().count(b"\n") == 2
    assert [event["event"] for event in seen] == ["whole", "next"]


def test_tensorboard_keeps_the_ranker_s_curves_apart(tmp_path: Path) -> None:
    with tensorboard(tmp_path) as report:
        for step, phase in ((1, "ranker"), (2, "retriever")):
            report("step", step=step, phase=phase, loss=float(step))
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    found = {name: [point.value for point in board.Scalars(name)] for name in board.Tags()["scalars"]}
    assert found == {"ranker/loss": [1.0], "train/loss": [2.0]}
