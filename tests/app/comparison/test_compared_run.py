import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest

from app.comparison.compared_run import RunFolder, is_trained, train, train_command
from app.comparison.run_history import Clock
from app.training import STOPPING
from retriever.artifacts import CURRENT
from retriever.errors import HoneError
from retriever.store import Store

ROOT = Path(__file__).parents[3]


def command(folder: RunFolder, steps: int = 12, pause: float = 0.01, mood: str = "well") -> list[str]:
    script = "tests.app.training_script"
    return [sys.executable, "-m", script, str(folder.store), str(steps), str(pause), mood]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "static-1").mkdir()
    return RunFolder(tmp_path / "static-1")


def newest_step(folder: RunFolder) -> int:
    newest = Store(folder.store).checkpoints.get(CURRENT)
    assert newest is not None
    step: int = newest.facts["step"]
    return step


def test_a_run_ends_with_its_final_checkpoint_and_waits_for_no_generation(folder: RunFolder) -> None:
    heard: list[str] = []

    def report(event: str, **fields: Any) -> None:
        heard.append(event)

    assert is_trained(folder) is None
    assert train(folder, command(folder), None, report, Event()) == "final"
    assert folder.events()[-1]["event"] == "asked", "the stand-in waits for a minute unless it is asked to stop"
    assert is_trained(folder) == "final" and newest_step(folder) == 12
    assert heard.count("step") == 12 and "checkpoint" in heard
    begun, ended = folder.sessions()
    assert begun["started"] < ended["ended"] and ended["reason"] == "final"
    assert train(folder, ["no such command"], None, report, Event()) == "final", "nothing is started again"


def test_a_stop_is_passed_on_once_and_the_run_goes_on_later(folder: RunFolder) -> None:
    stop = Event()

    def report(event: str, **fields: Any) -> None:
        if fields.get("step") == 7:
            stop.set()

    assert train(folder, command(folder, steps=400, pause=0.05), None, report, stop) == "interrupted"
    reached = newest_step(folder)
    assert 7 <= reached < 400 and is_trained(folder) is None
    assert train(folder, command(folder, steps=reached + 5), None, lambda *_, **__: None, Event()) == "final"
    assert len(folder.starts()) == 2 and newest_step(folder) == reached + 5
    steps = [event["step"] for event in folder.events() if event["event"] == "step"]
    assert steps == list(range(1, reached + 6)), "no step is trained twice"


def test_minutes_are_counted_on_the_run_s_clock_over_all_sessions(folder: RunFolder) -> None:
    stop = Event()
    slow = command(folder, steps=100_000, pause=0.02)
    Timer(2.0, stop.set).start()
    assert train(folder, slow, 3 / 60, lambda *_, **__: None, stop) == "interrupted"
    spent = Clock(folder.events(), folder.starts()).total
    assert train(folder, slow, (spent + 0.5) / 60, lambda *_, **__: None, Event()) == "minutes"
    assert is_trained(folder) == "minutes"
    total = Clock(folder.events(), folder.starts()).total
    assert spent + 0.4 <= total, (spent, total)


def test_a_run_that_fails_says_why(folder: RunFolder) -> None:
    with pytest.raises(HoneError, match=r"exit code 2: hone: the loss is nan.*train\.log"):
        train(folder, command(folder, mood="fail"), None, lambda *_, **__: None, Event())
    assert folder.sessions()[-1]["reason"] == "failed"
    with pytest.raises(HoneError, match="exit code 1: hone: the loss"):
        train(folder, command(folder, mood="7"), None, lambda *_, **__: None, Event())
    assert train(folder, command(folder), None, lambda *_, **__: None, Event()) == "final"
    steps = [event["step"] for event in folder.events() if event["event"] == "step"]
    assert steps == [*range(1, 8), *range(6, 13)], "the dead one's last checkpoint was that of step 5"


def test_a_run_that_fails_when_its_minutes_are_over_has_failed(folder: RunFolder) -> None:
    with pytest.raises(HoneError, match="the loss is nan"):
        train(folder, command(folder, mood="fail when stopped"), 0.5 / 60, lambda *_, **__: None, Event())
    assert is_trained(folder) is None and folder.sessions()[-1]["reason"] == "failed"


def test_that_it_was_asked_to_stop_is_no_warning(folder: RunFolder) -> None:
    heard: list[str] = []

    def report(event: str, **fields: Any) -> None:
        if event == "warning":
            heard.append(fields["message"])

    store = Store(folder.store, create=True)
    stop = Event()

    def say() -> None:
        for message in (STOPPING, "the disk is slow"):
            store.log_event("warning", source="trainer", message=message)
        Timer(1.0, stop.set).start()

    Timer(1.0, say).start()
    train(folder, command(folder, steps=100_000, pause=0.02), None, report, stop)
    assert heard == ["the disk is slow"]


def test_a_child_ends_when_its_parent_is_killed(folder: RunFolder) -> None:
    """As after kill -9 of `hone compare`; the next one waits for it and goes on."""
    Store(folder.store, create=True)
    code = (
        "import sys; from pathlib import Path; from threading import Event; from app.comparison.compared_run import *\n"
        f"train(RunFolder(Path({str(folder.root)!r})), {command(folder, 100_000, 0.02)!r}, None, print, Event())"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL) as parent:
        deadline = time.monotonic() + 60
        while not any(event["event"] == "step" for event in folder.events()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        parent.kill()
    with Store(folder.store).checkpoints.writer(wait=True):
        reached = newest_step(folder)
    assert train(folder, command(folder, reached + 3), None, lambda *_, **__: None, Event()) == "final"


def test_of_all_sessions_the_largest_peak_and_the_sum_of_seconds_count(folder: RunFolder) -> None:
    folder.note(started=1.0)
    folder.note(ended=2.0, reason="interrupted", peak={"trainer": 5, "refresher": 7}, cpu={"trainer": 1.5})
    folder.note(started=3.0)
    folder.note(ended=4.0, reason="final", peak={"trainer": 6}, cpu={"trainer": 0.5})
    assert folder.peak() == {"trainer": 6, "refresher": 7} and folder.starts() == [1.0, 3.0]
    assert folder.cpu() == {"trainer": 2.0}
    folder.note(started=5.0)
    assert folder.cpu() == {}, "what a killed session computed is not known, so neither is the sum"


def test_a_training_is_told_to_end_with_its_parent(folder: RunFolder) -> None:
    plain = train_command(folder, skip_missing=False)
    assert plain[3:] == ["train", str(folder.config), "--store", str(folder.store), "--resume", "--child", "--json"]
    assert train_command(folder, skip_missing=True)[-1] == "--skip-missing"
