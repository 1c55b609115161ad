"""Takes the jobs that wait, starts a process for each, and notices the ones that end without saying how.

Does not know what the process does; a crash of it never reaches this one.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import IO, Any

from sqlalchemy.exc import SQLAlchemyError
from structlog.typing import FilteringBoundLogger

from app.jobs import ACTIVE, Job, Jobs, UnknownJobError
from app.priority import Priority
from app.settings import database_url
from app.telemetry import json_log
from retriever.errors import HoneError
from retriever.store import Store

START_SECONDS = 60.0
LEASE_SECONDS = 60.0
ATTEMPTS = 3
"""How often a job is begun before it has failed: a process that was killed is started again."""
SHOWN_OUTPUT = 2000
TEND_SECONDS = 0.5


def job_command(store_root: Path, priority: Priority = Priority.IDLE) -> tuple[str, ...]:
    """Return the command of a job over a store; the job's id follows as its last argument."""
    how = ("--store", str(store_root), "--job-priority", priority.value, "--job")
    return (sys.executable, "-m", "app.cli", "index", *how)


class JobProcesses:
    """The jobs of this host: a child process each, which outlives a restart of this one."""

    def __init__(
        self,
        jobs: Jobs,
        command: Sequence[str],
        log: FilteringBoundLogger,
        *,
        takes: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``command`` runs one job when its id is appended; it finds the table through DATABASE_URL.

        Without ``takes`` jobs are queued for another host's process: this one may not write to the store.
        ``environment`` is that of the job's process, by default this one's.
        """
        self.jobs = jobs
        self.takes = takes
        self._command = tuple(command)
        self._environment = environment
        self._log = log
        self.host = numbering_host()
        self._children: dict[tuple[str, int], tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
        self._lock = Lock()

    def start(self, kind: str, params: dict[str, Any] | None = None, asked: Sequence[bytes] = ()) -> tuple[Job, bool]:
        """Queue a job, start it if it may run here, and return it with True.

        The one of this ``kind`` that is queued or running already is returned with False. ``asked``: what it works on.
        """
        self.reap()
        job, new = self.jobs.create(kind, params, asked)
        if new:
            self._take()
        return self.jobs.get(job.id), new

    def tend(self) -> None:
        """Take what waits and give up what is lost; to be called again and again."""
        self.reap()
        self._take()

    def _take(self) -> None:
        with self._lock:
            while self.takes and (job := self.jobs.take(self.host)) is not None:
                self._spawn(job)
                self._log.info("job_started", job=job.id, kind=job.kind, attempt=job.attempts)

    def _spawn(self, job: Job) -> None:
        place = {"DATABASE_URL": self.jobs.url}
        with ExitStack() as undo:
            try:
                output = undo.enter_context(tempfile.TemporaryFile())
                child = subprocess.Popen(
                    [*self._command, job.id],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**(os.environ if self._environment is None else self._environment), **place},
                    start_new_session=True,
                )
            except OSError as error:
                self.jobs.fail(job.id, f"its process could not be started: {error}")
                raise
            undo.pop_all()  # the output is closed once the child has ended and it was read
        self._children[job.id, job.attempts] = child, output
        self.jobs.assign(job.id, child.pid)

    def release(self) -> None:
        """Let go of the processes that still run: they go on, and the next server of this host watches them."""
        with self._lock:
            for (job_id, _), (child, output) in self._children.items():
                output.close()
                if child.poll() is None:
                    self._log.warning("job_goes_on", job=job_id, pid=child.pid)
            self._children.clear()

    def reap(self) -> None:
        """Find the jobs whose process is gone though they never ended: killed ones wait again, others have failed."""
        with self._lock:
            self._reap_children()
            for job in self.jobs.active():
                if (job.id, job.attempts) not in self._children and (reason := self._lost(job)):
                    self._give_up(job, reason, again=True)

    def _reap_children(self) -> None:
        for (job_id, attempt), (child, output) in list(self._children.items()):
            code = child.poll()
            if code is None:
                continue
            size = output.seek(0, os.SEEK_END)
            output.seek(max(0, size - SHOWN_OUTPUT))
            tail = output.read().decode(errors="replace").strip()
            reason = f"its process ended with {_ending(code)} before the job did; it last said: {tail!r}"
            with suppress(UnknownJobError):  # somebody has removed its row
                job = self.jobs.get(job_id)
                if (job.host, job.attempts) == (self.host, attempt):  # else it was given to somebody else since
                    self._give_up(job, reason, again=code < 0)
            output.close()
            del self._children[job_id, attempt]  # last: while the table is away it is not forgotten how this one ended

    def _give_up(self, job: Job, reason: str, *, again: bool) -> None:
        """Let a lost job wait for its next attempt, or end it."""
        if job.state not in ACTIVE:
            return
        if job.cancel_requested:
            self.jobs.stopped(job.id, job)
        elif again and job.attempts < ATTEMPTS:
            if self.jobs.give_back(job):
                self._log.warning("job_waits_again", job=job.id, reason=reason, attempt=job.attempts)
        elif self.jobs.fail(job.id, reason, job):
            self._log.error("job_lost", job=job.id, reason=reason)

    def _lost(self, job: Job) -> str:
        """Say why ``job`` can no longer end by itself; empty if it may."""
        silent = time.time() - job.updated
        if not job.host:
            return ""  # it waits to be taken
        if job.pid is None:
            return "its process was never started" if silent > START_SECONDS else ""
        if job.host != self.host:
            lost = silent > LEASE_SECONDS
            return f"its process on host {job.host} has been silent for {silent:.0f} s" if lost else ""
        return f"its process {job.pid} is gone" if _is_gone(job.pid, job.id, silent) else ""


def numbering_host() -> str:
    """Return what names the place in which a process number stands for one process, the same for all processes there.

    Two containers may have one name, and so may two machines: /proc tells the namespace of numbers and the boot.
    """
    try:
        boot, space = Path("/proc/sys/kernel/random/boot_id").read_text(), Path("/proc/self/ns/pid").readlink()
    except OSError:  # not Linux
        return socket.gethostname()
    return f"{socket.gethostname()} ({boot[:8]}, {space})"


def _is_gone(pid: int, job_id: str, silent: float) -> bool:
    """Tell whether process ``pid`` runs the job no more; where /proc tells, one that inherited the number does not.

    One that has ended and was not reaped is left to the worker that started it, which knows how, but not for ever.
    """
    if Path("/proc/self/cmdline").exists():
        try:
            told = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # gone, or another user's
            return True
        return job_id.encode() not in told and (told != b"" or silent > LEASE_SECONDS)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    known = -code in signal.Signals.__members__.values()  # of the real-time ones only the first and the last are
    return f"signal {signal.Signals(-code).name if known else -code}"


def follow_jobs(processes: JobProcesses, log: FilteringBoundLogger, stop: Event) -> None:
    """Work on whatever is queued until ``stop`` is set; what still runs then goes on."""
    while not stop.is_set():
        try:
            processes.tend()
        except (OSError, SQLAlchemyError, HoneError) as error:  # what is away for a moment must not end the watch
            log.error("jobs_untended", reason=str(error))
        stop.wait(TEND_SECONDS)
    processes.release()


@contextmanager
def following_jobs(store_root: Path, stop: Event) -> Iterator[None]:
    """Work on the queued jobs of a store in a thread until the block ends, which sets ``stop``; log on stderr."""
    Store(store_root)
    jobs, log = Jobs(database_url(store_root)), json_log(sys.stderr)
    processes = JobProcesses(jobs, job_command(store_root, Priority.LOW), log)
    thread = Thread(target=follow_jobs, args=(processes, log, stop), name="follow-jobs")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        jobs.close()
