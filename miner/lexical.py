"""BM25's candidates: the passages that share words with a query, found once and kept, since no training moves them.

Does not know vectors, nor which candidates may be negatives.
"""

import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from indexer.lexical import ANALYSIS, LexicalIndex, build_lexical
from retriever.data import Corpus
from retriever.durable import sha256_json, write_atomic
from retriever.errors import CorruptError
from retriever.protocols import IntArray

BLOCK_QUERIES = 1024
"""Queries in a file of the cache."""


class LexicalSource:
    """The BM25 candidates of a run's training queries over its corpus, searched when first asked for, then read."""

    def __init__(self, corpus: Corpus, queries: Sequence[str], depth: int, cache: Path) -> None:
        """``depth`` candidates for each of ``queries``; ``cache`` is a folder that several runs may share."""
        self._corpus = corpus
        self._queries = queries
        self._depth = depth
        key: Mapping[str, object] = {
            "corpus": corpus.sha256,
            "queries": sha256_json(list(queries)),
            "depth": depth,
            "analysis": ANALYSIS,
        }
        self._folder = cache / sha256_json(key)

    @cached_property
    def _index(self) -> LexicalIndex:
        return build_lexical(text for _, texts in self._corpus.blocks() for text in texts)

    def __call__(self, query_rows: IntArray) -> IntArray:
        """Return candidates int32 [q, depth] of ``query_rows`` int32 [q], best first, −1 pads."""
        found = np.full((len(query_rows), self._depth), -1, np.int32)
        block_of = query_rows // BLOCK_QUERIES
        for block in np.unique(block_of).tolist():
            here = block_of == block
            found[here] = self._block(block)[query_rows[here] - block * BLOCK_QUERIES]
        return found

    def _block(self, block: int) -> IntArray:
        path = self._folder / f"{block:05d}.npy"
        texts = self._queries[block * BLOCK_QUERIES : (block + 1) * BLOCK_QUERIES]
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            np.save(buffer, self._searched(texts), allow_pickle=False)
            write_atomic(path, buffer.getvalue())
        try:
            rows: IntArray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise CorruptError(f"{path}: unreadable ({error}); remove it, it is a cache") from error
        if rows.dtype != np.int32 or rows.shape != (len(texts), self._depth):
            raise CorruptError(f"{path}: {rows.dtype} {rows.shape} where int32 belongs; remove it, it is a cache")
        return rows

    def _searched(self, texts: Sequence[str]) -> IntArray:
        return self._index.search(texts, self._depth)[0]
