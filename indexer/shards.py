"""Embedding shards: float32 files of one block of corpus rows each, written whole, checked, mapped and linked.

Does not know encoders, texts or FAISS.
"""

import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retriever.durable import keep_only, sha256_file, write_atomic
from retriever.errors import CorruptError, StoreError
from retriever.protocols import FloatArray
from retriever.store import Store

LEFTOVER_SECONDS = 3600.0
"""Age from which a temporary file in the cache belongs to a process that was killed."""

NAMED = ("passage_fingerprint", "query_fingerprint", "passage_tokens_fingerprint", "query_tokens_fingerprint")
"""Facts of a generation that name folders of the cache."""


def block_name(whole: str, block: int) -> str:
    """Return what the cache calls a block of the texts whose digest is ``whole``."""
    return f"{whole}-{block:05d}"


def shard_path(folder: Path, name: str) -> Path:
    """Return where the cache folder of one fingerprint keeps the vectors of the texts that are called ``name``."""
    return folder / f"{name}.npy"


def sidecar(path: Path) -> Path:
    """Return where the checksum of the cached file ``path`` stands."""
    return path.with_suffix(".sha256")


def write_checked(path: Path, data: bytes) -> None:
    """Write ``data`` whole, then its checksum beside it: a file without one was never finished."""
    write_atomic(path, data)
    write_atomic(sidecar(path), hashlib.sha256(data).hexdigest().encode())


def write_shard(path: Path, vectors: FloatArray) -> None:
    """Write float32 [rows, dim] as ``write_checked`` does."""
    buffer = io.BytesIO()
    np.save(buffer, vectors, allow_pickle=False)
    write_checked(path, buffer.getvalue())


def is_intact(path: Path, shape: tuple[int, int], warn: Callable[[str], None]) -> bool:
    """Tell whether a shard of ``shape`` was finished and is unaltered; an altered one is said through ``warn``."""
    checksum = sidecar(path)
    if not checksum.exists():
        return False
    if not path.exists() or sha256_file(path) != checksum.read_text().strip():
        warn(f"{path}: missing or altered since it was written; its passages are encoded anew")
        return False
    if (found := _mapped(path).shape) != shape:
        warn(f"{path}: holds {found} where {shape} belongs; its passages are encoded anew")
        return False
    return True


def _mapped(path: Path) -> FloatArray:
    try:
        vectors: FloatArray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise CorruptError(
            f"{path}: gone; if its generation was removed, go on with a newer one (`hone pin` keeps what it names)"
        ) from error
    except (OSError, ValueError, EOFError) as error:
        raise CorruptError(f"{path}: unreadable shard ({error}); build the index again") from error
    if vectors.dtype != np.float32 or vectors.ndim != 2:
        raise CorruptError(f"{path}: {vectors.dtype} {vectors.shape} where float32 [rows, dim] belongs")
    return np.asarray(vectors)


class Vectors:
    """Read access to the vectors of a corpus in row order, over shard files that are mapped while they are read.

    Files are opened for each access: a map keeps a descriptor, and a large corpus has more shards than descriptors.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Take the shards in row order.

        Raises CorruptError if there is none, one is unreadable, or their shapes do not make one matrix.
        """
        if not paths:
            raise CorruptError("no shards; build the index again")
        self.paths = tuple(paths)
        shapes = [_mapped(path).shape for path in self.paths]
        self._block_rows, self.dimensions = shapes[0]
        for number, (path, (rows, dimensions)) in enumerate(zip(self.paths, shapes, strict=True)):
            last = number == len(shapes) - 1
            if dimensions != self.dimensions or rows > self._block_rows or (rows < self._block_rows and not last):
                raise CorruptError(
                    f"{path}: holds {rows} x {dimensions} where {self._block_rows} x {self.dimensions} belongs"
                )
        self._rows: int = sum(rows for rows, _ in shapes)

    def __len__(self) -> int:
        return self._rows

    def blocks(self) -> Iterator[tuple[int, FloatArray]]:
        """Yield (first row, read-only float32 [n, dim]) of each shard in row order."""
        for number, path in enumerate(self.paths):
            yield number * self._block_rows, _mapped(path)

    def gather(self, rows: NDArray[np.integer]) -> FloatArray:
        """Return the vectors float32 [n, dim] at ``rows`` [n], in that order. Raises IndexError for a row outside."""
        if len(rows) and (rows.min() < 0 or rows.max() >= self._rows):
            raise IndexError(f"rows {rows.min()} to {rows.max()} where 0 to {self._rows - 1} exist; drop pads first")
        gathered = np.empty((len(rows), self.dimensions), np.float32)
        block_of = rows // self._block_rows
        for block in np.unique(block_of):
            here = block_of == block
            gathered[here] = _mapped(self.paths[block])[rows[here] - block * self._block_rows]
        return gathered


def link_vectors(vectors: Vectors, folder: Path) -> None:
    """Give ``folder`` the shards as 00000.npy …: hard links, or copies where links are not possible."""
    folder.mkdir()
    for number, path in enumerate(vectors.paths):
        target = folder / f"{number:05d}.npy"
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)


def open_vectors(folder: Path) -> Vectors:
    """Open what ``link_vectors`` made. Raises CorruptError if a shard between the first and the last is missing."""
    paths = sorted(folder.glob("*.npy"))
    for number, path in enumerate(paths):
        if path.name != f"{number:05d}.npy":
            raise CorruptError(f"{folder}: shard {number:05d}.npy is missing; rows would no longer be ids")
    if not paths:
        raise CorruptError(f"{folder}: no shards; the generation is incomplete")
    return Vectors(paths)


def drop_unused(store: Store) -> list[str]:
    """Delete the cached shards and tokens of every fingerprint that no generation on disk names; return those.

    Also removes what killed processes left half-written. Raises BusyError while another process builds.
    """
    with store.generations.writer():
        used = set()
        for number in store.generations.numbers():
            try:
                facts = store.generations.at(number).facts
                used |= {facts.get(name) for name in NAMED}
            except StoreError:  # a broken generation protects nothing; its reader reports it
                continue
        return keep_only(store.embeddings, used, LEFTOVER_SECONDS)
