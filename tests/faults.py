"""Counts the filesystem steps of a piece of code and lets one of them fail. Does not know what the code writes."""

import io
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest

CALLS = (
    *("open", "close", "write", "ftruncate", "fsync", "scandir", "listdir"),
    *("mkdir", "rmdir", "rename", "replace", "unlink", "link"),
)
KILLED = 137


@dataclass
class Steps:
    """The steps taken so far, as (call, its first argument); ``fail`` is called in place of step ``fail_at``.

    A step on an open file is recorded with the file's inode number.
    """

    fail_at: int = -1
    fail: Callable[[], NoReturn] | None = None
    taken: list[tuple[str, Any]] = field(default_factory=list)

    def take(self, call: str, target: Any) -> bool:
        """Record a step; return whether it is the one to fail."""
        self.taken.append((call, os.fstat(target).st_ino if isinstance(target, int) else target))
        return len(self.taken) - 1 == self.fail_at

    def broken(self) -> NoReturn:
        """Do what ``fail`` does."""
        assert self.fail is not None
        self.fail()


class _CountedFile(io.FileIO):
    """A file whose every write is a step; the one that fails leaves half of its bytes."""

    def __init__(self, path: str, mode: str, steps: Steps) -> None:
        super().__init__(path, mode)
        self._steps = steps

    def write(self, data: Any) -> int:
        if self._steps.take("write", self.fileno()):
            super().write(bytes(data)[: len(data) // 2])
            self._steps.broken()
        return super().write(data)


def _counted(name: str, original: Callable[..., Any], steps: Steps) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if steps.take(name, args[0] if args else "."):
            if name == "close":  # the system closes a descriptor even when it reports an error
                original(*args, **kwargs)
            steps.broken()
        return original(*args, **kwargs)

    return call


def _opened(steps: Steps) -> Callable[..., Any]:
    def call(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if steps.take("open", path):
            steps.broken()
        raw = _CountedFile(os.fspath(path), mode.replace("b", ""), steps)
        wrap = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
        buffer: Any = wrap(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding="utf-8")

    return call


@contextmanager
def counted(steps: Steps) -> Iterator[Steps]:
    """Record in ``steps`` every filesystem step that the block takes through os, pathlib and shutil."""
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, _counted(name, getattr(os, name), steps))
        patch.setattr(io, "open", _opened(steps))
        yield steps


def full_disk() -> NoReturn:
    """Fail as a system call does."""
    raise OSError(28, "No space left on device")


def killed() -> NoReturn:
    """End the process at once, without any clean-up, as SIGKILL does."""
    os._exit(KILLED)


def run_and_kill(action: Callable[[], object], fail_at: int) -> int:
    """Run ``action`` in a forked child that dies at step ``fail_at``; return the child's exit code."""
    child = os.fork()
    if child == 0:
        try:
            with counted(Steps(fail_at, killed)):
                action()
            os._exit(0)
        except Exception:  # noqa: BLE001 - no error of the child may run on into the test that forked it
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
