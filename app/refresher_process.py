"""The refresher as the trainer's child: started, watched, restarted with back-off, ended with its parent.

Does not know what a refresh is.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import IO

from app.priority import yield_to_others
from app.progress import Report
from retriever.artifacts import CURRENT, Artifact

RESTARTS = 5
BACK_OFF_SECONDS = 0.5
LOG_NAME = "refresher.log"


class RefresherProcess:
    """Implements retriever.adoption.Refresher over a child process that follows the store's checkpoints.

    A child that ends before its work is done is restarted, at most five times in a row without a publication.
    """

    def __init__(self, command: Sequence[str], store_root: Path, report: Report) -> None:
        """``command`` follows ``store_root`` until its standard input ends; what it prints goes to a log there."""
        self._command = list(command)
        self._root = store_root
        self._log = store_root / LOG_NAME
        self._report = report
        self._closing = Event()
        self._failed: str | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._watcher = Thread(target=self._watch, name="refresher-watch", daemon=True)
        self.pid: int | None = None

    def start(self) -> None:
        """Start the child and the thread that restarts it."""
        self._spawn()
        self._watcher.start()

    def marked(self, checkpoint: Artifact) -> None:
        """Start the child if it was not started yet; it follows the store."""
        if self._child is None:
            self.start()

    @property
    def drained(self) -> bool:
        """Whether the child did all that there was to do and ended by itself."""
        return self._child is not None and not self._watcher.is_alive() and self._failed is None

    def trouble(self) -> str | None:
        """Return why the child is gone for good, None while it runs or is being restarted."""
        return self._failed

    def wait(self) -> str | None:
        """Wait until the child has drained and ended by itself; return why it did not."""
        self._watcher.join()
        return self._failed

    def close(self) -> None:
        """End the child now, if it was started."""
        self._closing.set()
        self._end_child()
        if self._watcher.is_alive():
            self._watcher.join()

    def _end_child(self) -> None:
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()

    def _spawn(self) -> None:
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        self.pid = self._child.pid
        if self._closing.is_set():  # close() may have come first, to the child before
            self._end_child()
        self._report("refresher_started", pid=self.pid)

    def _watch(self) -> None:
        failures = 0
        while failures <= RESTARTS:
            assert self._child is not None
            published = self._published()
            code = self._child.wait()
            self._end_child()
            if code == 0 or self._closing.is_set():
                return
            failures = 1 if self._published() != published else failures + 1
            reason = f"the refresher ended with exit code {code} ({self._last_words()})"
            if failures > RESTARTS:
                break
            seconds = BACK_OFF_SECONDS * 2 ** (failures - 1)
            self._report("warning", message=f"{reason}; restart {failures} of {RESTARTS} in {seconds} s")
            if self._closing.wait(seconds):
                return
            self._spawn()
        self._failed = f"{reason}, after {RESTARTS} restarts; see {self._log}"
        self._report("warning", message=self._failed)

    def _published(self) -> tuple[str, ...]:
        """Return what the child has published so far: one that gets on with its work may fail again and again."""
        pointers = (self._root / kind / CURRENT for kind in ("generations", "negatives"))
        return tuple(pointer.read_text() if pointer.exists() else "" for pointer in pointers)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"


def refresher_command(config: Path, store_root: Path, *, skip_missing: bool) -> list[str]:
    """Return the command line of a child refresher."""
    command = [sys.executable, "-m", "app.cli", "refresh", str(config), "--store", str(store_root), "--child"]
    return [*command, "--skip-missing"] if skip_missing else command


def end_with_parent(pipe: IO[bytes] | None = None) -> None:
    """Let this process run at low priority and end at once when its standard input, its parent's pipe, closes.

    It may end anywhere: whatever it was doing is re-derived from the store.
    """
    yield_to_others()
    _when_closed(pipe, lambda: os._exit(1))


def stop_with_parent(pipe: IO[bytes] | None = None) -> None:
    """Let this process get SIGTERM when its standard input, its parent's pipe, closes."""
    _when_closed(pipe, lambda: os.kill(os.getpid(), signal.SIGTERM))


def _when_closed(pipe: IO[bytes] | None, act: Callable[[], None]) -> None:
    descriptor = (pipe or sys.stdin).fileno()  # read without Python's buffer: its lock, held, aborts a normal exit

    def watch() -> None:
        while os.read(descriptor, 4096):
            pass
        act()

    Thread(target=watch, name="parent-watch", daemon=True).start()
