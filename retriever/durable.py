"""Filesystem steps that survive a power cut: atomic files, published folders, append-only lines, writer locks.

Does not know what the bytes mean or which folders exist.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from retriever.errors import BusyError, InputError

CHUNK_BYTES = 1 << 22
LOCK_TRIES, LOCK_TRY_SECONDS = 5, 0.05


def fsync_path(path: Path) -> None:
    """Flush one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Flush every file below ``folder``, then every folder, deepest first."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in sorted(files):
            fsync_path(Path(parent, name))
        fsync_path(Path(parent))


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: a reader sees the old bytes or the new ones, also after a crash."""
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def publish_folder(stage: Path, target: Path) -> None:
    """Rename the flushed folder ``stage`` to ``target``, which must not exist, and flush the parent."""
    fsync_tree(stage)
    os.rename(stage, target)
    fsync_path(target.parent)


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """Give a place beside ``out`` for a file or folder; it becomes ``out``, flushed, once the block succeeds.

    After an exception it is gone.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = out.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        yield stage
        if stage.is_file():
            fsync_path(stage)
        publish_folder(stage, out)
    except BaseException:
        shutil.rmtree(stage) if stage.is_dir() else stage.unlink(missing_ok=True)
        raise


def remove_folder(folder: Path) -> None:
    """Delete ``folder`` so that no half-deleted folder is ever visible under its own name."""
    trash = folder.with_name(f".tmp-{uuid.uuid4().hex}")
    os.rename(folder, trash)
    shutil.rmtree(trash)


def keep_only(folder: Path, names: Collection[str | None], leftover_seconds: float = 0) -> list[str]:
    """Remove the folders in the cache ``folder`` but those with these ``names``; return which were removed.

    What killed processes left goes, too: folders half removed, files half written, these once they are as old as
    ``leftover_seconds``. An absent ``folder`` holds nothing.
    """
    if not folder.exists():
        return []
    for leftover in [*folder.glob(".tmp-*"), *folder.glob("*/.tmp-*")]:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        elif time.time() - leftover.stat().st_mtime >= leftover_seconds:
            leftover.unlink()
    unused = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in names)
    for name in unused:
        remove_folder(folder / name)
    return unused


def link_tree(source: Path, target: Path) -> None:
    """Recreate the folder ``source`` as ``target`` with hard links, or copies where links are not possible."""

    def link(src: str, dst: str) -> None:
        try:
            os.link(Path(src).resolve(), dst)  # of a symbolic link, os.link would link the link
        except OSError:
            shutil.copy2(src, dst)

    shutil.copytree(source, target, copy_function=link)


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hex SHA-256 of ``value`` as canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def append_line(path: Path, record: dict[str, Any], *, flush: bool = True) -> None:
    """Append one JSON line; a line that a crash tore off before is cut away first, so that lines never merge."""
    append_lines(path, [record], flush=flush)


def append_lines(path: Path, records: Sequence[dict[str, Any]], *, flush: bool = True) -> None:
    """Append a JSON line a record, flushed together, as ``append_line`` does one."""
    line = b"".join(json.dumps(record, separators=(",", ":")).encode() + b"\n" for record in records)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        end = _cut_torn_line(descriptor)
        while line:  # a disk that fills up takes a part first, and only then fails
            line = line[os.write(descriptor, line) :]
        if flush:
            os.fsync(descriptor)
            if end == 0:  # the file may be new: its name must last as well
                fsync_path(path.parent)
    finally:
        os.close(descriptor)


def _cut_torn_line(descriptor: int) -> int:
    """Cut the file behind its last newline and return its size."""
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        window = min(end, 4096)
        newline = os.pread(descriptor, window, end - window).rfind(b"\n")
        end += newline + 1 - window
        if newline >= 0:
            break
    if end < size:
        os.ftruncate(descriptor, end)
    return end


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the complete JSON lines of ``path`` (none if it does not exist); a torn last line does not count.

    Raises InputError for a complete line that is not JSON.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise InputError(f"{path}:{number}: not a JSON line ({error}); the file was altered by hand") from error
    return records


@contextmanager
def exclusive(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file ``path``; the system releases it when the process ends, however it ends.

    If another process holds it, waits for it, or raises BusyError within a moment, naming that process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            _lock(file, wait)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise BusyError(
                f"{path}: process {owner} is already writing {what}; stop it or wait until it is done"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock(file: IO[str], wait: bool) -> None:
    for left in reversed(range(LOCK_TRIES)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if left == 0:
                raise
            time.sleep(LOCK_TRY_SECONDS)  # whoever only looks whether a writer is there holds it for an instant
