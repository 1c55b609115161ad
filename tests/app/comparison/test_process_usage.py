import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.comparison.process_usage import Usage, cpu_seconds, peak_bytes

told = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")


@told
def test_a_process_that_takes_memory_and_time_is_seen_to() -> None:
    code = (
        "import sys; block = bytearray(64_000_000); print(sum(range(3_000_000))); sys.stdout.flush(); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        usage = Usage()
        usage.look("trainer", process.pid)
        process.communicate()
    assert usage.peak["trainer"] > 64_000_000 and usage.cpu["trainer"] > 0
    before = usage.peak, usage.cpu
    usage.look("trainer", process.pid)
    usage.look("refresher", None)
    assert (usage.peak, usage.cpu) == before, "it is gone, and what it used stays"


@told
def test_processes_of_one_role_share_the_peak_and_add_up_their_seconds() -> None:
    usage, before = Usage(), [peak_bytes(pid) or 0 for pid in (os.getpid(), os.getppid())]
    usage.look("refresher", os.getpid())
    alone = usage.cpu["refresher"]
    usage.look("refresher", os.getppid())
    other = cpu_seconds(os.getppid())
    assert other is not None and usage.cpu["refresher"] == pytest.approx(alone + other, abs=1)
    assert usage.peak["refresher"] >= max(before)


@told
def test_seconds_are_those_that_python_counts() -> None:
    sum(range(3_000_000))
    seconds = cpu_seconds(os.getpid())
    assert seconds is not None and seconds == pytest.approx(time.process_time(), abs=0.1)


def test_what_the_system_does_not_tell_is_none() -> None:
    assert peak_bytes(2**30) is None and cpu_seconds(2**30) is None
