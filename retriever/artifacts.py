"""Numbered, immutable artifacts: staged out of sight, published whole, named by pointers, checked by checksum.

Does not know what an artifact holds, nor which kinds there are.
"""

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retriever.durable import exclusive, publish_folder, remove_folder, sha256_file, write_atomic
from retriever.errors import CorruptError, FormatError, InputError, StoreError

FORMAT = 1
CURRENT, SERVED, BEST = "CURRENT", "SERVED", "BEST"


@dataclass(frozen=True)
class Artifact:
    """One published artifact: ``kind`` and ``number`` name it, ``path`` holds its files."""

    kind: str
    number: int
    path: Path
    manifest: Mapping[str, Any] = field(repr=False)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What its maker measured and chose (step, rows, metrics, fingerprints …)."""
        facts: Mapping[str, Any] = self.manifest["facts"]
        return facts

    @property
    def parents(self) -> Mapping[str, int]:
        """Numbers of the artifacts that it was made from, by kind in the singular.

        Several of a kind have the others under "kind:what it was for", such as "generation:WARMUP".
        """
        parents: Mapping[str, int] = self.manifest["parents"]
        return parents

    def numbers_of(self, kind: str) -> set[int]:
        """Return the numbers of all its parents of ``kind``."""
        return {number for name, number in self.parents.items() if name.partition(":")[0] == kind}

    def sha256(self, name: str) -> str:
        """Return the checksum that the manifest records for the file ``name``."""
        digest: str = self.manifest["files"][name]["sha256"]
        return digest

    def verify(self, below: str = "") -> None:
        """Compare every file whose name begins with ``below`` with the manifest.

        Raises CorruptError naming the first file that differs.
        """
        for name, expected in self.manifest["files"].items():
            if not name.startswith(below):
                continue
            path = self.path / name
            if not path.is_file():
                raise CorruptError(f"{path}: missing from {self.kind} {self.number}")
            if path.stat().st_size != expected["bytes"]:
                raise CorruptError(f"{path}: {path.stat().st_size} bytes where {expected['bytes']} were written")
            if sha256_file(path) != expected["sha256"]:
                raise CorruptError(f"{path}: checksum differs from the manifest of {self.kind} {self.number}")


@dataclass
class Draft:
    """An artifact in the making: write files below ``path`` and facts into ``facts``.

    ``number`` is set once it is published.
    """

    path: Path
    parents: dict[str, int]
    facts: dict[str, Any] = field(default_factory=dict)
    number: int = 0


class Series:
    """The numbered artifacts of one kind in one folder, and the pointers that name some of them.

    Readers go through pointers and never list the folder; the one writer holds the kind's lock.
    """

    def __init__(self, folder: Path, lock: Path, origin: Mapping[str, Any]) -> None:
        """``origin`` is written into each manifest: code_version and config_sha256."""
        self.folder = folder
        self.kind = folder.name
        self.origin = dict(origin)
        self._lock = lock
        self._writers = 0
        self._held = ExitStack()

    @contextmanager
    def writer(self, *, wait: bool = False) -> Iterator[None]:
        """Be the one writer of this kind; may be nested. If another process is, waits for it or raises BusyError."""
        if self._writers == 0:
            with ExitStack() as held:
                held.enter_context(exclusive(self._lock, self.kind, wait=wait))
                with self._pointing():
                    for leftover in self.folder.glob(".tmp-*"):
                        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
                self._held = held.pop_all()
        self._writers += 1
        try:
            yield
        finally:
            self._writers -= 1
            if self._writers == 0:
                self._held.close()

    def _pointing(self) -> AbstractContextManager[None]:
        """Hold the lock of the pointers, which anyone may move: a new writer's sweep must not meet a move half done."""
        return exclusive(self._lock.with_suffix(".pointers"), f"pointers of {self.kind}", wait=True)

    @contextmanager
    def stage(self, parents: Mapping[str, int], pointer: str = CURRENT) -> Iterator[Draft]:
        """Give a hidden folder to fill; leaving the block publishes it and moves ``pointer`` to it.

        An exception inside the block removes the folder: nothing becomes visible.
        """
        with self.writer():
            draft = Draft(self.folder / f".tmp-{uuid.uuid4().hex}", dict(parents))
            draft.path.mkdir()
            try:
                yield draft
                number = max(self.numbers(), default=-1) + 1
                self._write_manifest(draft, number)
                publish_folder(draft.path, self.path(number))
            except BaseException:
                shutil.rmtree(draft.path, ignore_errors=True)
                raise
            draft.number = number
            self.point(pointer, number)

    def _write_manifest(self, draft: Draft, number: int) -> None:
        files = sorted(path for path in draft.path.rglob("*") if path.is_file())
        manifest = {
            "format": FORMAT,
            "kind": self.kind,
            "number": number,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **self.origin,
            "parents": draft.parents,
            "files": {
                path.relative_to(draft.path).as_posix(): {
                    "bytes": path.stat().st_size,
                    "sha256": sha256_file(path),
                }
                for path in files
            },
            "facts": draft.facts,
        }
        (draft.path / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")

    def path(self, number: int) -> Path:
        """Return the folder of artifact ``number``, whether or not it exists."""
        return self.folder / f"{number:06d}"

    def numbers(self) -> list[int]:
        """List the numbers on disk, ascending: for the writer, which alone may add or remove."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def at(self, number: int) -> Artifact:
        """Return artifact ``number``.

        Raises StoreError if it is absent, CorruptError if its manifest is unreadable, FormatError if that is newer.
        """
        path = self.path(number) / "manifest.json"
        try:
            manifest = json.loads(path.read_bytes())
            if manifest["format"] > FORMAT:
                raise FormatError(f"{path}: format {manifest['format']} is newer than this hone reads ({FORMAT})")
            manifest["facts"], manifest["parents"]
            for entry in manifest["files"].values():
                entry["bytes"], entry["sha256"]
        except FileNotFoundError as error:
            raise StoreError(f"{path}: no such artifact; it was removed or never published") from error
        except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CorruptError(f"{path}: not a manifest ({error})") from error
        return Artifact(self.kind, number, path.parent, manifest)

    def pointed(self, pointer: str) -> int | None:
        """Return the number that ``pointer`` names, None if the pointer does not exist."""
        path = self.folder / pointer
        try:
            return int(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CorruptError(f"{path}: not a pointer; write the number of an artifact into it") from error

    def point(self, pointer: str, number: int) -> None:
        """Let ``pointer`` name artifact ``number``. Raises StoreError if there is no such artifact."""
        if not pointer.isidentifier():
            raise InputError(f"pointer {pointer!r}: use letters, digits and _ only")
        self.at(number)
        with self._pointing():
            write_atomic(self.folder / pointer, f"{number:06d}\n".encode())

    def pointers(self) -> dict[str, int]:
        """Return all pointers of this kind with the numbers they name."""
        names = sorted(path.name for path in self.folder.iterdir() if path.is_file() and path.name[0] != ".")
        return {name: number for name in names if (number := self.pointed(name)) is not None}

    def get(self, pointer: str = CURRENT) -> Artifact | None:
        """Return the artifact that ``pointer`` names, unchecked; None before the first."""
        number = self.pointed(pointer)
        return None if number is None else self.at(number)

    def intact(
        self, pointer: str, warn: Callable[[str], None], fits: Callable[[Artifact], bool] = lambda _: True
    ) -> Artifact | None:
        """Return the artifact that ``pointer`` names with its checksums verified.

        A corrupt one is reported through ``warn`` and the newest intact one before it that ``fits`` is taken instead.
        Raises CorruptError if there is none left; returns None before the first.
        """
        newest = self.pointed(pointer)
        if newest is None:
            return None
        for number in range(newest, -1, -1):
            try:
                artifact = self.at(number)
                if number < newest and not fits(artifact):
                    continue
                artifact.verify()
                return artifact
            except CorruptError as error:
                warn(f"{error}; using the one before it")
            except StoreError:
                if number == newest:
                    warn(f"{self.folder / pointer} names {number}, which is gone; using the one before it")
        raise CorruptError(f"{self.folder}: no intact artifact up to {newest}; publish a new one")

    def remove(self, number: int) -> None:
        """Delete artifact ``number``; it vanishes at once and whole."""
        with self.writer():
            remove_folder(self.path(number))

    def age_seconds(self, number: int) -> float:
        """Return how long ago artifact ``number`` was published."""
        return time.time() - self.path(number).stat().st_mtime
