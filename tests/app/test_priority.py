"""How much of the cores a process leaves to others, read from outside."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app import priority
from app.priority import Priority
from tests.app.served import wait_for

YIELDS = """
import sys, threading
from app.priority import Priority, yield_to_others
threading.Thread(target=threading.Event().wait, daemon=True).start()
yield_to_others(Priority(sys.argv[1]))
print(threading.enumerate()[1].native_id, flush=True)
threading.Thread(target=sys.stdin.read).start()
"""
LIBRARY = """
import _thread, os, time
from app.priority import yield_to_others
lock = _thread.allocate_lock()
lock.acquire()
_thread.start_new_thread(lock.acquire, ())  # as a library does: unknown to threading
while len(os.listdir("/proc/self/task")) < 2:
    time.sleep(0.01)
yield_to_others()
print(*[os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir("/proc/self/task")])
"""
Start = Callable[[Priority], tuple[int, int]]

in_sessions = pytest.mark.skipif(not priority.AUTOGROUP.exists(), reason="this system groups no processes by session")
knows_idle = pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this system has no class SCHED_IDLE")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that yields; gives its number, and that of a thread that Python had started before."""
    children: list[subprocess.Popen[str]] = []

    def process(wanted: Priority) -> tuple[int, int]:
        child = subprocess.Popen(
            [sys.executable, "-c", YIELDS, wanted],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=Path(__file__).parents[2],
        )
        children.append(child)
        assert child.stdout is not None
        return child.pid, int(child.stdout.readline())

    yield process
    for child in children:
        child.communicate("")


def niceness(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread) - os.getpriority(os.PRIO_PROCESS, 0)


@knows_idle
def test_idle_is_the_class_that_runs_where_nobody_else_would(start: Start) -> None:
    process, before = start(Priority.IDLE)
    assert os.sched_getscheduler(process) == os.SCHED_IDLE
    assert os.sched_getscheduler(before) == os.SCHED_OTHER, "it shows that the job lives"
    wait_for(lambda: len(list(Path(f"/proc/{process}/task").iterdir())) == 3)
    later = {int(one.name) for one in Path(f"/proc/{process}/task").iterdir()} - {process, before}
    assert [os.sched_getscheduler(thread) for thread in later] == [os.SCHED_IDLE], "what it starts from then on"


def test_low_is_a_niceness_and_normal_is_none(start: Start) -> None:
    assert niceness(start(Priority.LOW)[0]) == min(priority.NICENESS, 19 - os.getpriority(os.PRIO_PROCESS, 0))
    assert niceness(start(Priority.NORMAL)[0]) == 0


@pytest.mark.skipif(not priority.THREADS.exists(), reason="this system does not tell a process's threads")
def test_threads_that_libraries_have_started_are_as_nice() -> None:
    command = [sys.executable, "-c", LIBRARY]
    folder = Path(__file__).parents[2]
    said = subprocess.run(command, cwd=folder, start_new_session=True, capture_output=True, text=True, check=True)
    expected = min(priority.NICENESS + os.getpriority(os.PRIO_PROCESS, 0), 19)
    assert said.stdout.split() == [str(expected)] * 2


@pytest.mark.parametrize("wanted", [Priority.IDLE, Priority.LOW])
def test_where_there_is_no_such_class_idle_is_low(wanted: Priority, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []
    monkeypatch.setattr(os, "nice", said.append)
    monkeypatch.setattr(os, "setpriority", lambda *_: None)
    monkeypatch.setattr(priority, "AUTOGROUP", Path("/nowhere"))

    def refuse(*_: object) -> None:
        raise PermissionError("a sandbox")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    priority.yield_to_others(wanted)
    monkeypatch.delattr(os, "SCHED_IDLE", raising=False)
    priority.yield_to_others(wanted)
    assert said == [priority.NICENESS] * 2


@in_sessions
@pytest.mark.parametrize(("wanted", "nice"), [(Priority.IDLE, 19), (Priority.LOW, 10)])
def test_a_child_yields_to_its_parent_s_session(start: Start, wanted: Priority, nice: int) -> None:
    """Linux gives each session a share of its own, within which alone a process's class and niceness count."""
    before = priority.AUTOGROUP.read_text()  # empty where this process is in no group, as in some containers
    process, _ = start(wanted)
    assert f"nice {nice}" in Path(f"/proc/{process}/autogroup").read_text()
    assert priority.AUTOGROUP.read_text() == before, "the parent's session is left alone"
