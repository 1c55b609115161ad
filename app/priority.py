"""What a process leaves to others of the same machine: all that they want, most of it, or an equal share.

Does not know what the process works on.
"""

import os
import threading
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

NICENESS = 10
NICEST = 19
AUTOGROUP = Path("/proc/self/autogroup")
THREADS = Path("/proc/self/task")


class Priority(StrEnum):
    """A job's share of cores that others want, too: next to nothing, a tenth, or an equal one."""

    IDLE = "idle"
    LOW = "low"
    NORMAL = "normal"


def yield_to_others(priority: Priority = Priority.LOW) -> None:
    """Lower the priority of this process, which must lead a session of its own, and that of its session.

    ``IDLE`` is Linux' class SCHED_IDLE, which runs where nobody else would; where the system has no such class, or lets
    nobody choose it, it is what ``LOW`` is: a niceness of 10. Where Linux groups processes by session
    (sched_autogroup), both count within a session alone: without the second step a process takes half of each core.
    """
    if priority is Priority.NORMAL:
        return
    idle = priority is Priority.IDLE and _idle()
    if not idle:
        _nice()
    if AUTOGROUP.exists() and os.getsid(0) == os.getpid():
        with suppress(OSError):  # a container may keep /proc read-only; the work is the same, if less polite
            AUTOGROUP.write_text(str(NICEST if idle else NICENESS))


def _threads() -> set[int]:
    """Return this thread and those that libraries have started, where the system tells them.

    Python's other threads keep their priority: one shows that the job lives.
    """
    spared = {thread.native_id for thread in threading.enumerate()} - {threading.get_native_id()}
    return {int(one.name) for one in THREADS.iterdir()} - spared if THREADS.exists() else set()


def _nice() -> None:
    """Raise the niceness of this thread, and that of those that ``_threads`` finds: on Linux each has its own."""
    niceness = os.nice(NICENESS)
    for thread in _threads():
        with suppress(ProcessLookupError):  # it has just ended
            os.setpriority(os.PRIO_PROCESS, thread, niceness)


def _idle() -> bool:
    """Give the class SCHED_IDLE to what ``_threads`` finds; False where that cannot be."""
    if not hasattr(os, "SCHED_IDLE") or not THREADS.exists():
        return False
    try:
        for thread in _threads():
            with suppress(ProcessLookupError):  # it has just ended
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    except OSError:  # a sandbox may know one class alone
        return False
    return True
