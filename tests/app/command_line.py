"""The command line called in this process on tiny data, and runs, stores and folders to call it on."""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from app.cli import main
from app.composition import Run, open_run

RUN_FILE = """\
seed = 1
[data]
path = "{data}"
[model]
name = "{model}"
dropout = 0.0
[train]
max_steps = 6
batch_size = 4
learning_rate = 1e-3
warmup_steps = 1
precision = "fp32"
device = "cpu"
save_every = 3
[negatives]
depth = 10
[refresh]
trigger = "steps:3"
[index]
precision = "fp32"
"""


@dataclass(frozen=True)
class Answer:
    """What one call of the command line left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        assert self.code == 0, self.err
        answer: dict[str, Any] = json.loads(self.out)
        return answer

    @property
    def complaint(self) -> str:
        """The one line of an error, after what was reported of the work before it."""
        *before, last = self.err.splitlines()
        assert self.code == 2 and last.startswith("hone: "), (self.code, self.err)
        assert not any(line.startswith(("hone: ", "Traceback")) for line in before if "warning: " not in line), self.err
        return last.removeprefix("hone: ")


Hone = Callable[..., Answer]


def caller(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hone:
    """Return a function that runs `hone` with its arguments; relative paths start from the current folder."""

    def hone(*arguments: str | Path | int) -> Answer:
        monkeypatch.setattr(sys, "argv", ["hone", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Answer(code, printed.out, printed.err)

    return hone


def write_run(path: Path, data: Path, model: Path, *changes: tuple[str, str]) -> Path:
    """Write a run.toml of six steps with three generations; each change replaces one piece of its text."""
    text = RUN_FILE.format(data=data, model=model)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def signal_once_heard(number: signal.Signals) -> Thread:
    """Send ``number`` to this process as soon as somebody handles it: on a slow machine a fixed delay ends pytest."""
    before = signal.getsignal(number)

    def send() -> None:
        while signal.getsignal(number) is before:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    sender = Thread(target=send, daemon=True)
    sender.start()
    return sender


def contents(root: Path) -> dict[str, str]:
    """Return the digest of every file below ``root`` but its locks, and each folder."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(root.rglob("*"))
        if "locks" not in path.relative_to(root).parts
    }


def silent(event: str, **fields: Any) -> None:
    """Take a report."""


def never(message: str) -> None:
    """Fail at a warning."""
    raise AssertionError(message)


def opened(config: Path, store: Path) -> Run:
    """Open the run of ``config`` on ``store``."""
    return open_run(config, store, skip_missing=False, warn=never)
