"""BM25's candidates: the passages that share words with a query, found once and kept, since no training moves them.

Does not know vectors, nor which candidates may be negatives.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import bm25s
import numpy as np

from retriever.data import Corpus
from retriever.durable import sha256_json, write_atomic
from retriever.errors import CorruptError
from retriever.protocols import FloatArray, IntArray

WORD = re.compile(r"\w+")
K1, B = 0.9, 0.4
"""Pyserini's and Anserini's defaults, which most published BM25 runs use."""
ANALYSIS = f"lower-case words {WORD.pattern}, Lucene's idf, k1 {K1}, b {B}"
BLOCK_QUERIES = 1024
"""Queries in a file of the cache."""


def words(text: str) -> list[str]:
    r"""Return the lower-case runs of letters, digits and _ (``\w+`` of Unicode): no stop words, no stemming."""
    return WORD.findall(text.lower())


class LexicalIndex:
    """A BM25 index of texts (Robertson and Zaragoza, 2009; idf as in Lucene), by bm25s (Lù, 2024)."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Index ``texts``: afterwards it takes 8 bytes for each word of each text, repetitions apart."""
        self._ids: dict[str, int] = {}
        rows = [self._known(words(text)) for text in texts]
        self._index = bm25s.BM25(k1=K1, b=B, method="lucene", auto_compile=False)
        self._index.index(bm25s.tokenization.Tokenized(ids=rows, vocab=self._ids), show_progress=False)

    def _known(self, found: Sequence[str]) -> IntArray:
        return np.array([self._ids.setdefault(word, len(self._ids)) for word in found], np.int32)

    def scores(self, query: str) -> FloatArray:
        """Return the score float32 [texts] of each text for ``query``: 0 where they share no word."""
        ids = [self._ids[word] for word in words(query) if word in self._ids]
        found: FloatArray = self._index.get_scores_from_ids(ids)
        return found

    def best(self, query: str, depth: int) -> IntArray:
        """Return at most ``depth`` rows int32 that share a word with ``query``, best first, equal ones in order."""
        scores = self.scores(query)
        least = np.partition(scores, -depth)[-depth] if depth < len(scores) else 0.0
        rows = np.flatnonzero((scores >= least) & (scores > 0))
        return rows[np.argsort(-scores[rows], kind="stable")][:depth].astype(np.int32)


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
        return LexicalIndex(text for _, texts in self._corpus.blocks() for text in texts)

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
        rows = np.full((len(texts), self._depth), -1, np.int32)
        for line, text in zip(rows, texts, strict=True):
            found = self._index.best(text, self._depth)
            line[: len(found)] = found
        return rows
