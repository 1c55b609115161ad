"""The store: one folder with every kind of artifact, the log of adoptions and events, and what may be removed.

Does not know what trains, builds or serves from it.
"""

import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Collection
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from retriever.artifacts import FORMAT, Series
from retriever.durable import append_line, exclusive, fsync_path, read_lines, write_atomic
from retriever.errors import BusyError, FormatError, InputError, StoreError

KINDS = ("corpora", "checkpoints", "generations", "negatives")
SINGULAR = {
    "corpora": "corpus",
    "checkpoints": "checkpoint",
    "generations": "generation",
    "negatives": "negatives",
}


class Store:
    """A store's folder, opened for reading and writing.

    Raises FormatError for a store of a newer format, InputError if ``root`` is some other folder.
    """

    def __init__(self, root: Path, config_sha256: str = "", *, create: bool = False) -> None:
        """Open ``root``; ``create`` makes a new store of an absent or empty folder."""
        self.root = root
        if create and _is_unmade(root):
            _make(root)
        _check_format(root)
        origin = {"code_version": code_version(), "config_sha256": config_sha256}
        self.corpora, self.checkpoints, self.generations, self.negatives = (
            Series(root / kind, root / "locks" / f"{kind}.lock", origin) for kind in KINDS
        )

    def is_writable(self) -> bool:
        """Tell whether this process may publish here: a server may have the store mounted for reading alone."""
        return os.access(self.generations.folder, os.W_OK) and os.access(self.root, os.W_OK)

    def series(self, kind: str) -> Series:
        """Return the series of ``kind``. Raises InputError naming the kinds there are."""
        if kind not in KINDS:
            raise InputError(f"no kind {kind!r} of artifact; there are {', '.join(KINDS)}")
        found: Series = getattr(self, kind)
        return found

    @property
    def embeddings(self) -> Path:
        """Folder of the embedding shards, a cache keyed by passage fingerprint."""
        return self.root / "embeddings"

    @property
    def lexical(self) -> Path:
        """Folder of BM25's candidates, a cache keyed by corpus, queries, depth and analysis."""
        return self.root / "lexical"

    @property
    def teacher(self) -> Path:
        """Folder of a teacher's scores, a cache keyed by teacher, corpus and queries."""
        return self.root / "teacher"

    def log_event(self, event: str, **fields: Any) -> None:
        """Append one line to events.jsonl, for those who watch; not flushed to the disk."""
        append_line(self.root / "events.jsonl", {"time": time.time(), "event": event, **fields}, flush=False)

    def record_adoption(self, step: int, number: int, sha256: str) -> None:
        """Append {step, set, sha256} to adoptions.jsonl and flush it: call before the first batch is drawn from it."""
        append_line(self.root / "adoptions.jsonl", {"step": step, "set": number, "sha256": sha256})

    def adoptions(self) -> list[dict[str, Any]]:
        """Return the recorded adoptions in order."""
        return read_lines(self.root / "adoptions.jsonl")

    def sweep(self) -> None:
        """Remove what processes that were killed had staged; of a kind that somebody writes at the moment nothing."""
        for kind in KINDS:
            with suppress(BusyError), self.series(kind).writer():
                pass  # who becomes the writer finds a clean folder

    def retain(self, kind: str, keep: int, grace_seconds: float, also: Collection[int] = ()) -> list[int]:
        """Remove all but the newest ``keep`` artifacts of ``kind``; return the numbers removed.

        What a pointer names, the parents of that, what is younger than ``grace_seconds`` and ``also`` stay.
        """
        series = self.series(kind)
        with series.writer():
            numbers = series.numbers()
            protected = {*numbers[max(0, len(numbers) - keep) :], *self._named(kind), *also}
            removed = [n for n in numbers if n not in protected and series.age_seconds(n) > grace_seconds]
            for number in removed:
                series.remove(number)
        return removed

    def _named(self, kind: str) -> set[int]:
        named = set(self.series(kind).pointers().values())
        for other in KINDS:
            series = self.series(other)
            for number in set(series.pointers().values()):
                try:
                    named |= series.at(number).numbers_of(SINGULAR[kind])
                except StoreError:  # a broken artifact protects nothing; its reader reports it
                    continue
        return named


def _is_unmade(root: Path) -> bool:
    """Tell whether ``root`` is absent, empty, a new volume, or what a crash in the middle of ``_make`` leaves."""
    made = {*KINDS, "embeddings", "locks", "locks/store.lock", "lost+found"}
    found = root.rglob("*") if root.is_dir() else [root] if root.exists() else []
    return all(path.name.startswith(".tmp-") or path.relative_to(root).as_posix() in made for path in found)


def _make(root: Path) -> None:
    with exclusive(root / "locks" / "store.lock", "the store", wait=True):
        for leftover in root.glob(".tmp-*"):
            leftover.unlink()
        for name in (*KINDS, "embeddings"):
            (root / name).mkdir(exist_ok=True)
        write_atomic(root / "format.json", json.dumps({"format": FORMAT}).encode())
        fsync_path(root.parent)


def _check_format(root: Path) -> None:
    path = root / "format.json"
    try:
        found = json.loads(path.read_bytes())["format"]
    except (FileNotFoundError, NotADirectoryError) as error:
        if not root.exists():
            raise InputError(
                f"{root}: no such folder, so not a hone store; `hone index DATA --store {root}` makes one, or --store "
                "names another"
            ) from error
        raise InputError(f"{root}: not a hone store (no format.json); give the folder that a run wrote") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f'{path}: unreadable ({error}); restore it as {{"format": {FORMAT}}}') from error
    if not isinstance(found, int) or found > FORMAT:
        raise FormatError(f"{path}: format {found} is newer than this hone reads ({FORMAT}); upgrade hone")


def is_store(root: Path) -> bool:
    """Tell whether ``root`` holds a store, of whatever format."""
    return (root / "format.json").is_file()


@cache
def code_version() -> str:
    """Return hone's version and a digest of its source files, so that an artifact names the code that made it."""
    digest = hashlib.sha256()
    top = Path(__file__).parent.parent
    for package in ("retriever", "indexer", "miner", "app"):
        for path in sorted((top / package).rglob("*.py")):
            digest.update(path.relative_to(top).as_posix().encode() + path.read_bytes())
    try:
        version = importlib.metadata.version("hone")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    return f"{version}+{digest.hexdigest()[:12]}"
