"""Candidates that no training moves: found once for a run's queries, kept on disk block by block, then read.

Does not know how they are found, nor which of them may be negatives.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from retriever.durable import write_atomic
from retriever.errors import CorruptError
from retriever.protocols import IntArray

BLOCK_QUERIES = 1024
"""Queries in a file of the cache."""


class RememberedSource:
    """The candidates of a run's training queries, searched when first asked for, then read."""

    def __init__(
        self, queries: Sequence[str], depth: int, folder: Path, search: Callable[[Sequence[str]], IntArray]
    ) -> None:
        """``search`` gives texts their candidates int32 [n, depth], best first, −1 pads; ``folder`` is theirs alone."""
        self._queries = queries
        self._depth = depth
        self._folder = folder
        self._search = search

    def __call__(self, query_rows: IntArray) -> IntArray:
        """Return candidates int32 [q, depth] of ``query_rows`` int32 [q], best first, −1 pads."""
        found = np.full((len(query_rows), self._depth), -1, np.int32)
        block_of = query_rows // BLOCK_QUERIES
        for block in np.unique(block_of).tolist():
            here = block_of == block
            found[here] = self._block(block)[query_rows[here] - block * BLOCK_QUERIES]
        return found

    def fill(self) -> None:
        """Search for the queries of every block that is not there yet."""
        for block in range(-(-len(self._queries) // BLOCK_QUERIES)):
            self._block(block)

    def _block(self, block: int) -> IntArray:
        path = self._folder / f"{block:05d}.npy"
        texts = self._queries[block * BLOCK_QUERIES : (block + 1) * BLOCK_QUERIES]
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            np.save(buffer, self._search(texts), allow_pickle=False)
            write_atomic(path, buffer.getvalue())
        try:
            rows: IntArray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise CorruptError(f"{path}: unreadable ({error}); remove it, it is a cache") from error
        if rows.dtype != np.int32 or rows.shape != (len(texts), self._depth):
            raise CorruptError(f"{path}: {rows.dtype} {rows.shape} where int32 belongs; remove it, it is a cache")
        return rows
