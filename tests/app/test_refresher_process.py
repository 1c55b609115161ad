import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app import refresher_process
from app.refresher_process import LOG_NAME, RESTARTS, RefresherProcess, refresher_command
from tests.app.command_line import Hone, signal_once_heard, write_run

ROOT = Path(__file__).parent.parent.parent
DIES = "import sys; print('first words'); print('out of memory', file=sys.stderr); sys.exit(3)"
DRAINS = "print('drained')"
WORKS = "import sys; sys.stdin.read()"
PUBLISHES_AND_DIES = """\
import pathlib, sys
pointer = pathlib.Path(sys.argv[1], "negatives", "CURRENT")
number = int(pointer.read_text()) if pointer.exists() else 0
pointer.parent.mkdir(exist_ok=True)
pointer.write_text(f"{number + 1:06d}\\n")
sys.exit(0 if number == 8 else 1)
"""
FOLLOWS = """\
import os, sys, time
from pathlib import Path
from app.refresher_process import end_with_parent
end_with_parent()
Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(float(sys.argv[2]))
"""
PARENT = """\
import sys, time
from pathlib import Path
from app.refresher_process import RefresherProcess
child = RefresherProcess([sys.executable, "-c", *sys.argv[2:]], Path(sys.argv[1]), lambda event, **fields: None)
child.start()
time.sleep(600)
"""

Start = Callable[..., RefresherProcess]


@pytest.fixture
def said() -> list[tuple[str, Any]]:
    return []


@pytest.fixture
def start(tmp_path: Path, said: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a child that runs a script with the store's path as its argument; ended at the end of the test."""
    monkeypatch.setattr(refresher_process, "BACK_OFF_SECONDS", 0.005)
    started: list[RefresherProcess] = []

    def report(event: str, **fields: Any) -> None:
        said.append((event, fields))

    def make(script: str) -> RefresherProcess:
        child = RefresherProcess([sys.executable, "-c", script, str(tmp_path)], tmp_path, report)
        child.start()
        started.append(child)
        return child

    yield make
    for child in started:
        child.close()


def is_running(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before the file was opened, or read
        return False


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_child_that_always_dies_is_given_up_after_five_restarts(
    start: Start, said: list[tuple[str, Any]], tmp_path: Path
) -> None:
    child = start(DIES)
    trouble = child.wait()
    assert trouble is not None and trouble == child.trouble()
    assert "exit code 3 (out of memory)" in trouble and str(tmp_path / LOG_NAME) in trouble
    assert [event for event, _ in said].count("refresher_started") == RESTARTS + 1 == 6
    warnings = [fields["message"] for event, fields in said if event == "warning"]
    pauses = [float(text.rpartition(" in ")[2].removesuffix(" s")) for text in warnings[:-1]]
    assert pauses == [0.005 * 2**n for n in range(RESTARTS)], "twice as long each time"
    assert warnings[-1] == trouble and not child.drained
    assert (tmp_path / LOG_NAME).read_text().count("first words") == 6


def test_while_it_is_being_restarted_there_is_no_trouble(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresher_process, "BACK_OFF_SECONDS", 60)
    child = start(DIES)
    first = child.pid
    assert first is not None
    wait_until(lambda: not is_running(first))
    time.sleep(0.05)
    assert child.trouble() is None and not child.drained
    began = time.monotonic()
    child.close()
    assert time.monotonic() - began < 5, "closing does not wait for the restart"


def test_a_child_that_gets_on_with_its_work_may_die_as_often_as_it_likes(
    start: Start, said: list[tuple[str, Any]]
) -> None:
    child = start(PUBLISHES_AND_DIES)
    assert child.wait() is None
    assert [event for event, _ in said].count("refresher_started") == 9


def test_a_child_that_is_done_is_left_in_peace(start: Start, said: list[tuple[str, Any]]) -> None:
    child = start(DRAINS)
    assert child.wait() is None and child.trouble() is None and child.drained
    assert [event for event, _ in said] == ["refresher_started"]


def test_closing_ends_the_child(start: Start, said: list[tuple[str, Any]]) -> None:
    child = start(WORKS)
    assert child.pid is not None and is_running(child.pid)
    child.close()
    assert not is_running(child.pid)
    assert child.trouble() is None and [event for event, _ in said] == ["refresher_started"]


def test_what_was_never_started_can_be_closed(tmp_path: Path) -> None:
    child = RefresherProcess(["false"], tmp_path, lambda event, **fields: None)
    child.close()
    assert child.pid is None and not child.drained


def test_the_child_is_the_command_that_a_person_could_type(tmp_path: Path) -> None:
    command = refresher_command(Path("run.toml"), tmp_path, skip_missing=True)
    assert command[0] == sys.executable
    assert command[3:5] == ["refresh", "run.toml"] and {"--child", "--skip-missing", str(tmp_path)} <= {*command}
    assert "--skip-missing" not in refresher_command(Path("run.toml"), tmp_path, skip_missing=False)


def test_a_child_with_nothing_left_to_do_ends_well_while_its_parent_lives(tmp_path: Path) -> None:
    """It reads its parent's pipe to the last; the interpreter must be able to end all the same."""
    command = [sys.executable, "-c", FOLLOWS, str(tmp_path / "pid"), "0.05"]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdin is not None and child.stderr is not None
    with child:
        assert child.wait(timeout=60) == 0, child.stderr.read().decode()


@pytest.mark.slow
def test_a_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), FOLLOWS, str(pid_file), "600"], cwd=ROOT)
    wait_until(lambda: pid_file.exists() and pid_file.read_text() != "", 60)
    child = int(pid_file.read_text())
    assert is_running(child)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(child), 10)


def test_a_refresher_that_is_told_to_stop_does_not_seem_done(hone: Hone, tiny: Path, tmp_path: Path) -> None:
    """Else the trainer would wait for its negatives in vain: with exit code 0 nobody restarts it."""
    config = write_run(tmp_path / "run.toml", tiny / "data", tiny / "model")
    stop = signal_once_heard(signal.SIGTERM)
    answer = hone("refresh", config, "--store", tmp_path / "store")
    stop.join()
    assert answer.complaint.startswith("interrupted")
