import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Event, Thread

import pytest

from app import job_processes
from app.job_processes import ATTEMPTS, JobProcesses, follow_jobs, job_command
from app.jobs import Job, Jobs
from app.priority import Priority
from app.telemetry import json_log
from tests.app.served import children, end_children, new_store, wait_for

SCRIPT = Path(__file__).with_name("job_script.py")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    table = Jobs(f"sqlite:///{tmp_path / 'hone.db'}")
    yield table
    table.close()


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def server(jobs: Jobs, log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], JobProcesses]]:
    """Makes what a server keeps of its jobs' processes, which act as told; what still runs at the end is killed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made: list[JobProcesses] = []

    def make(action: str) -> JobProcesses:
        made.append(JobProcesses(jobs, [sys.executable, str(SCRIPT), action], json_log(log)))
        return made[-1]

    yield make
    for processes in made:
        end_children(processes)
        processes.release()


def ended(processes: JobProcesses, job_id: str) -> Job:
    """Wait for a job's end, as the server's own watch does."""
    deadline = time.monotonic() + 30
    while (job := processes.jobs.get(job_id)).state in ("queued", "running"):
        assert time.monotonic() < deadline
        processes.tend()
        time.sleep(0.01)
    return job


def running(jobs: Jobs, job_id: str) -> Job:
    deadline = time.monotonic() + 30
    while (job := jobs.get(job_id)).state == "queued":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return job


def let_stand_still(child: subprocess.Popen[bytes], database: Path) -> None:
    """Stop ``child``, but not in the middle of writing: that would lock out all others."""
    with closing(sqlite3.connect(database)) as held:
        held.execute("BEGIN IMMEDIATE")
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)


def test_a_job_runs_in_a_process_of_its_own(server: Callable[[str], JobProcesses]) -> None:
    processes = server("work")
    job, new = processes.start("rebuild")
    assert new and job.pid not in (None, os.getpid())
    done = ended(processes, job.id)
    assert (done.state, done.result) == ("done", {"generation": 1})
    assert (done.phase, done.done, done.total) == ("count", 6000, 6000)


def test_a_crash_is_noticed_and_what_the_process_said_is_kept(
    server: Callable[[str], JobProcesses], log: io.StringIO
) -> None:
    processes = server("crash")
    job, _ = processes.start("rebuild")
    failed = ended(processes, job.id)
    assert failed.state == "failed"
    assert "SIGKILL" in (failed.error or "") and "out of luck" in (failed.error or "")
    assert failed.attempts == ATTEMPTS
    events = [json.loads(line)["event"] for line in log.getvalue().splitlines()]
    assert events == ["job_started", "job_waits_again"] * 2 + ["job_started", "job_lost"]


def test_a_process_that_never_says_how_it_ended_has_failed(server: Callable[[str], JobProcesses]) -> None:
    processes = server("silent")
    job, _ = processes.start("rebuild")
    assert "exit code 0" in (ended(processes, job.id).error or "")


def test_a_job_that_is_cancelled_stops(server: Callable[[str], JobProcesses], jobs: Jobs) -> None:
    processes = server("slow")
    job, _ = processes.start("rebuild")
    running(jobs, job.id)
    assert jobs.request_cancel(job.id)
    assert ended(processes, job.id).state == "cancelled"


def test_a_second_wish_is_the_first_one_s_job(server: Callable[[str], JobProcesses]) -> None:
    processes = server("hang")
    first, _ = processes.start("rebuild")
    second, new = processes.start("rebuild")
    assert (second.id, new) == (first.id, False)
    assert len(children(processes)) == 1


def test_a_job_goes_on_over_a_restart_of_the_server(server: Callable[[str], JobProcesses], jobs: Jobs) -> None:
    before = server("slow")
    job, _ = before.start("rebuild")
    running(jobs, job.id)
    after = server("slow")
    after.reap()
    assert jobs.get(job.id).state == "running"
    assert after.start("rebuild")[0].id == job.id


def test_a_job_that_died_while_the_server_was_away_is_begun_again(
    server: Callable[[str], JobProcesses], jobs: Jobs
) -> None:
    before = server("hang")
    job, _ = before.start("rebuild")
    os.kill(job.pid or 0, signal.SIGKILL)
    children(before)[0].wait()  # as the system does for whoever has lost its parent
    after = server("work")
    done = ended(after, job.id)
    assert (done.state, done.attempts) == ("done", 2) and done.pid != job.pid
    assert after.start("rebuild")[1]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="only /proc tells a process that nobody has reaped")
def test_how_a_process_ended_is_said_by_the_worker_that_started_it(
    server: Callable[[str], JobProcesses], jobs: Jobs
) -> None:
    """Of two workers on one host the other one only sees that it has ended."""
    parent, other = server("silent"), server("hang")
    job, _ = parent.start("rebuild")
    running(jobs, job.id)  # before it has begun /proc shows no command either, for a moment
    wait_for(lambda: Path(f"/proc/{job.pid}/cmdline").read_bytes() == b"")
    other.tend()
    assert (jobs.get(job.id).state, jobs.get(job.id).attempts) == ("running", 1)
    assert "exit code 0" in (ended(parent, job.id).error or "")


@pytest.mark.parametrize("how", [signal.SIGCONT, signal.SIGKILL])
def test_a_process_that_lost_its_job_to_another_host_says_nothing_more_of_it(
    server: Callable[[str], JobProcesses],
    jobs: Jobs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: signal.Signals,
) -> None:
    """It stood still for longer than its lease; woken up it is told to stop, and ends without a result."""
    here, there = server("slow"), server("slow")
    there.host = "elsewhere"
    job, _ = here.start("rebuild")
    running(jobs, job.id)
    (child,) = children(here)
    let_stand_still(child, tmp_path / "hone.db")
    with monkeypatch.context() as patched:
        later = time.time() + job_processes.LEASE_SECONDS + 1
        patched.setattr(time, "time", lambda: later)
        there.tend()
    wait_for(lambda: jobs.get(job.id).state == "running" and jobs.get(job.id).token == 3)
    child.send_signal(how)
    wait_for(lambda: child.poll() is not None)
    here.reap()
    assert (jobs.get(job.id).state, jobs.get(job.id).host) == ("running", "elsewhere")
    assert children(here) == [] and jobs.request_cancel(job.id)
    assert ended(there, job.id).state == "cancelled", "it is theirs"


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="the system has no real-time signals")
def test_a_signal_without_a_name_is_an_end_like_others(jobs: Jobs, log: io.StringIO) -> None:
    script = "import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 1)"
    processes = JobProcesses(jobs, [sys.executable, "-c", script], json_log(log))
    job, _ = processes.start("rebuild")
    assert f"signal {signal.SIGRTMIN + 1} before the job did" in (ended(processes, job.id).error or "")


def test_a_job_whose_row_was_removed_is_forgotten(
    server: Callable[[str], JobProcesses], jobs: Jobs, tmp_path: Path
) -> None:
    processes = server("silent")
    processes.start("rebuild")
    with closing(sqlite3.connect(tmp_path / "hone.db")) as table, table:
        table.execute("DELETE FROM jobs")
    children(processes)[0].wait()
    processes.tend()
    assert children(processes) == []


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="only /proc tells a process that nobody has reaped")
def test_a_process_that_nobody_reaps_is_given_up_in_time(
    server: Callable[[str], JobProcesses], jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, other = server("silent"), server("hang")
    job, _ = parent.start("rebuild")
    running(jobs, job.id)  # before it has begun /proc shows no command either, for a moment
    wait_for(lambda: Path(f"/proc/{job.pid}/cmdline").read_bytes() == b"")
    later = time.time() + job_processes.LEASE_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: later)
    other.reap()
    assert (jobs.get(job.id).state, jobs.get(job.id).host) == ("queued", "")


def test_a_killed_process_that_was_to_be_cancelled_is_cancelled(
    server: Callable[[str], JobProcesses], jobs: Jobs, tmp_path: Path
) -> None:
    processes = server("slow")
    job, _ = processes.start("rebuild")
    running(jobs, job.id)
    (child,) = children(processes)
    let_stand_still(child, tmp_path / "hone.db")
    assert jobs.request_cancel(job.id)
    child.kill()
    assert ended(processes, job.id).state == "cancelled"


def test_who_may_not_write_leaves_jobs_to_those_who_may(server: Callable[[str], JobProcesses], jobs: Jobs) -> None:
    reader, writer = server("work"), server("work")
    reader.takes = False
    job, new = reader.start("rebuild")
    reader.tend()
    assert new and (jobs.get(job.id).state, children(reader)) == ("queued", [])
    assert ended(writer, job.id).state == "done"


def test_followers_work_on_what_is_queued_until_they_are_stopped(
    server: Callable[[str], JobProcesses], jobs: Jobs, log: io.StringIO
) -> None:
    stop = Event()
    processes = server("work")
    thread = Thread(target=follow_jobs, args=(processes, json_log(log), stop))
    thread.start()
    try:
        for _ in range(2):
            job, _ = jobs.create("rebuild")
            wait_for(lambda: jobs.get(job.id).state == "done" and not children(processes))  # noqa: B023 - waited for in this turn of the loop
    finally:
        stop.set()
        thread.join()


def test_another_process_with_the_number_of_a_job_is_not_that_job(
    server: Callable[[str], JobProcesses], jobs: Jobs
) -> None:
    processes = server("hang")
    jobs.create("rebuild")
    job = jobs.take(processes.host)
    assert job is not None
    jobs.begin(job.id, os.getpid())
    processes.reap()
    assert (jobs.get(job.id).state, jobs.get(job.id).host) == ("queued", "")


@pytest.mark.parametrize(("host", "pid"), [("elsewhere", 1), (None, None)])
def test_silence_is_given_time(
    server: Callable[[str], JobProcesses],
    jobs: Jobs,
    monkeypatch: pytest.MonkeyPatch,
    host: str | None,
    pid: int | None,
) -> None:
    """Of a job of another host, or one whose process was never started, only the time since its last word is known."""
    processes = server("hang")
    jobs.create("rebuild")
    job = jobs.take(host or processes.host)
    assert job is not None
    if pid is not None:
        jobs.begin(job.id, pid)
    processes.reap()
    assert jobs.get(job.id).host == (host or processes.host)
    later = time.time() + job_processes.LEASE_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: later)
    processes.reap()
    assert (jobs.get(job.id).state, jobs.get(job.id).host) == ("queued", "")


def test_where_numbers_mean_other_processes_there_is_another_host() -> None:
    """So of two containers with one name neither takes the other's job for one whose process is gone."""
    told = [sys.executable, "-c", "from app.job_processes import numbering_host; print(numbering_host())"]
    here = subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip()
    assert here == job_processes.numbering_host()
    apart = subprocess.run(["env", "unshare", "--pid", "--fork", *told], check=False, capture_output=True, text=True)
    if apart.returncode:
        pytest.skip(f"this machine makes no namespace of processes: {apart.stderr.strip()[-100:]}")
    assert apart.stdout.strip() != here


def test_a_process_that_cannot_start_fails_its_job(jobs: Jobs) -> None:
    processes = JobProcesses(jobs, ["/nowhere/python"], json_log(io.StringIO()))
    with pytest.raises(FileNotFoundError):
        processes.start("rebuild")
    (job,) = jobs.newest(1)
    assert job.state == "failed" and "could not be started" in (job.error or "")


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this system has no class SCHED_IDLE")
@pytest.mark.parametrize(("priority", "idle", "nice"), [("idle", True, 0), ("low", False, 10), ("normal", False, 0)])
def test_a_long_job_yields_to_others_as_told(
    server: Callable[[str], JobProcesses],
    jobs: Jobs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    priority: str,
    idle: bool,
    nice: int,
) -> None:
    monkeypatch.setenv("HONE_STORE", str(new_store(tmp_path)[0].root))
    job, _ = server(priority).start("rebuild")
    wait_for(lambda: jobs.get(job.id).phase == "there")
    pid = jobs.get(job.id).pid or 0
    assert os.sched_getscheduler(pid) == (os.SCHED_IDLE if idle else os.SCHED_OTHER)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, own + nice)


TOLD = "import os; print(*(os.environ.get(name) for name in ('OMP_NUM_THREADS', 'DATABASE_URL', 'ITS_OWN')))"


def test_a_job_s_environment_is_the_one_that_was_given(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for given, told in ((None, f"1 {jobs.url} None"), ({"ITS_OWN": "value"}, f"None {jobs.url} value")):
        processes = JobProcesses(jobs, [sys.executable, "-c", TOLD], json_log(io.StringIO()), environment=given)
        job, _ = processes.start("rebuild")
        assert f"it last said: '{told}'" in (ended(processes, job.id).error or "")


def test_the_rebuild_is_hone_index() -> None:
    how = ("--store", "store", "--job-priority", "low", "--job")
    assert job_command(Path("store"), Priority.LOW)[1:] == ("-m", "app.cli", "index", *how)
