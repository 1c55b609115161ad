"""One run of a comparison as a child process: `hone train` until its final checkpoint or its minutes are over.

Does not know what is compared, nor how a run is measured.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from app.comparison.machine import machine
from app.comparison.process_usage import Usage
from app.comparison.run_history import Clock
from app.progress import Report
from app.reports import forwarded
from app.training import STOPPING
from retriever.artifacts import CURRENT
from retriever.durable import append_line, read_lines
from retriever.errors import HoneError
from retriever.store import Store

LOOK_SECONDS = 0.5
INTERRUPTED = "hone: interrupted"
"""Last words of `hone train` when it was asked to stop; its exit code is that of any error."""
LAST_BREATH_SECONDS = 30.0
LOG_NAME = "train.log"
SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class RunFolder:
    """Where a compared run lies: its run.toml, its store, what its processes said and when they were started."""

    root: Path

    @property
    def config(self) -> Path:
        """The run.toml that `hone train` reads."""
        return self.root / "run.toml"

    @property
    def store(self) -> Path:
        """Root of the run's own store."""
        return self.root / "store"

    @property
    def log(self) -> Path:
        """What the trainer printed, over all sessions."""
        return self.root / LOG_NAME

    def sessions(self) -> list[dict[str, Any]]:
        """Return {"started"} and {"ended", "reason", "peak", "cpu"} of each session in order."""
        return read_lines(self.root / "sessions.jsonl")

    def note(self, **record: Any) -> None:
        """Append a record to ``sessions``."""
        append_line(self.root / "sessions.jsonl", record)

    def starts(self) -> list[float]:
        """Return when each session was started, in Unix seconds."""
        return [session["started"] for session in self.sessions() if "started" in session]

    def peak(self) -> dict[str, int]:
        """Return the peak resident bytes of "trainer" and "refresher" over all sessions, where they could be read."""
        peak: dict[str, int] = {}
        for session in self.sessions():
            for role, size in session.get("peak", {}).items():
                peak[role] = max(size, peak.get(role, 0))
        return peak

    def cpu(self) -> dict[str, float]:
        """Return the processor seconds of "trainer" and "refresher" over all sessions, none where one told nothing.

        A session that was killed told nothing, nor did one whose processes could not be read.
        """
        seconds: dict[str, float] = {}
        if sum(bool(session.get("cpu")) for session in self.sessions()) < len(self.starts()):
            return seconds
        for session in self.sessions():
            for role, used in session.get("cpu", {}).items():
                seconds[role] = round(seconds.get(role, 0.0) + used, 2)
        return seconds

    def machines(self) -> list[dict[str, Any]]:
        """Return the machines that its sessions were started on, each once."""
        return distinct(session["machine"] for session in self.sessions() if "machine" in session)

    def events(self) -> list[dict[str, Any]]:
        """Return what trainer and refresher reported."""
        return read_lines(self.store / "events.jsonl")


def distinct(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return ``records`` in their order, each once."""
    kept: list[dict[str, Any]] = []
    for record in records:
        if record not in kept:
            kept.append(record)
    return kept


def train_command(folder: RunFolder, *, skip_missing: bool) -> list[str]:
    """Return the command line of a training that ends with its parent.

    With --resume: the folder is that of one table, which a newer hone may read as another configuration.
    """
    command = [sys.executable, "-m", "app.cli", "train", str(folder.config), "--store", str(folder.store)]
    return [*command, "--resume", "--child", "--json", *(["--skip-missing"] if skip_missing else [])]


def is_trained(folder: RunFolder) -> str | None:
    """Return why no more is trained in ``folder``: "final" or "minutes"; None if there is more to do."""
    if not (folder.store / "format.json").is_file():
        return None
    newest = Store(folder.store).checkpoints.get(CURRENT)
    if newest is None:
        return None
    if newest.facts.get("final"):
        return "final"
    ended = [session.get("reason") for session in folder.sessions()]
    return "minutes" if "minutes" in ended else None


class Watch:
    """What the events of a child have told so far: its refresher, its final checkpoint, the seconds on its clock."""

    def __init__(self, report: Report, spent: float) -> None:
        """Events go on to ``report``; ``spent`` seconds were on the clock before."""
        self._report = report
        self._spent = spent
        self._first: float | None = None
        self.refresher: int | None = None
        self.final = False

    @property
    def seconds(self) -> float:
        """Seconds on the run's clock."""
        return self._spent + (0.0 if self._first is None else time.monotonic() - self._first)

    def report(self, event: str, **fields: Any) -> None:
        """Take in one event."""
        if self._first is None:
            self._first = time.monotonic()
        if event == "refresher_started":
            self.refresher = fields["pid"]
        self.final = self.final or (event == "checkpoint" and fields["final"])
        if fields.get("message") != STOPPING:  # it stops because it is asked to
            self._report(event, **fields)


def train(folder: RunFolder, command: Sequence[str], minutes: float | None, report: Report, stop: Event) -> str:
    """Run ``command`` in a process of its own until its work is done; return "final", "minutes" or "interrupted".

    The child is asked to stop once the final checkpoint is there (a generation of it is not needed), once ``minutes``
    on the run's clock are over, or once ``stop`` is set; it then saves a checkpoint. ``report`` hears what it reports.
    Raises HoneError with its last words if it fails.
    """
    store = Store(folder.store, create=True)
    with store.checkpoints.writer(wait=True):  # an earlier session's trainer, orphaned, may be about to end
        done = is_trained(folder)
    if done is not None:
        return done
    watch = Watch(report, Clock(folder.events(), folder.starts()).total)
    folder.note(started=time.time(), machine=machine())
    usage = Usage()
    reason = ""
    with forwarded(store, "", watch.report), _child(folder, command) as child:
        while child.poll() is None:
            usage.look("trainer", child.pid)
            usage.look("refresher", watch.refresher)
            if not reason:
                reason = _why_stop(watch, minutes, stop)
                if reason:
                    child.send_signal(signal.SIGINT)
            time.sleep(LOOK_SECONDS)
    if reason == "minutes" and not _last_line(folder).startswith(INTERRUPTED):
        reason = ""  # it failed at just that moment
    ended = is_trained(folder) or reason or "failed"
    folder.note(ended=time.time(), reason=ended, peak=usage.peak, cpu=usage.cpu)
    if ended == "failed":
        raise HoneError(f"hone train ended with exit code {child.returncode}: {_last_words(folder)}")
    return ended


def _why_stop(watch: Watch, minutes: float | None, stop: Event) -> str:
    if stop.is_set():
        return "interrupted"
    if watch.final:
        return "final"
    return "minutes" if minutes is not None and watch.seconds >= 60 * minutes else ""


@contextmanager
def _child(folder: RunFolder, command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the child in a session of its own: Ctrl-C reaches this process alone, which asks the child once."""
    with folder.log.open("ab") as log:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
    try:
        yield child
    finally:
        assert child.stdin is not None
        child.stdin.close()  # upon which it saves a checkpoint and ends
        try:
            child.wait(LAST_BREATH_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _last_words(folder: RunFolder) -> str:
    return f"{_last_line(folder)[:SHOWN_CHARACTERS] or 'it said nothing'}; see {folder.log}"


def _last_line(folder: RunFolder) -> str:
    lines = folder.log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
