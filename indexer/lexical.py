r"""A BM25 index of a corpus in a folder of its own: built with a generation, read in place by whoever searches.

Does not know vectors, generations or queries of a data set. A word is a lower-case run of letters, digits and _,
``\w+`` of Unicode: no stop words, no stemming, so that no language is preferred.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np

from retriever.data import Corpus
from retriever.durable import link_tree
from retriever.errors import CorruptError
from retriever.protocols import BoolArray, FloatArray, IntArray

WORD = re.compile(r"\w+")
K1, B = 0.9, 0.4
"""Pyserini's and Anserini's defaults, which most published BM25 runs use."""
ANALYSIS = f"lower-case words {WORD.pattern}, Lucene's idf, k1 {K1}, b {B}"


def words(text: str) -> list[str]:
    """Return the words of ``text`` in their order."""
    return WORD.findall(text.lower())


class LexicalIndex:
    """Scores of BM25 (Robertson and Zaragoza, 2009; idf as in Lucene) by bm25s (Lù, 2024); for many threads."""

    def __init__(self, index: Any) -> None:
        """Take a bm25s.BM25 that is built or loaded."""
        self._index = index

    @property
    def rows(self) -> int:
        """Number of passages."""
        count: int = self._index.scores["num_docs"]
        return count

    def scores(self, query: str) -> FloatArray:
        """Return float32 [rows]: 0 for passages that share no word with ``query``."""
        known: dict[str, int] = self._index.vocab_dict
        found: FloatArray = self._index.get_scores_from_ids([known[word] for word in words(query) if word in known])
        return found

    def search(
        self, queries: Sequence[str], depth: int, allowed: BoolArray | None = None
    ) -> tuple[IntArray, FloatArray]:
        """Return rows int32 [q, depth] that share a word with their query, best first, −1 pads; scores, −inf in pads.

        Equal scores: lower row first. ``allowed`` bool [rows] leaves out the others.
        """
        rows = np.full((len(queries), depth), -1, np.int32)
        scores = np.full((len(queries), depth), -np.inf, np.float32)
        for place, query in enumerate(queries):
            found = self.scores(query)
            if allowed is not None:
                found[~allowed] = 0
            best = _best(found, depth)
            rows[place, : len(best)] = best
            scores[place, : len(best)] = found[best]
        return rows, scores


def _best(scores: FloatArray, depth: int) -> IntArray:
    least = np.partition(scores, -depth)[-depth] if depth < len(scores) else np.float32(0)
    rows = np.flatnonzero((scores >= least) & (scores > 0))
    return rows[np.argsort(-scores[rows], kind="stable")][:depth].astype(np.int32)


def build_lexical(texts: Iterable[str]) -> LexicalIndex:
    """Index ``texts``, in memory: 4 bytes for each word while it is built, 8 for each word of each text afterwards."""
    ids: dict[str, int] = {}
    rows = [np.array([ids.setdefault(word, len(ids)) for word in words(text)], np.int32) for text in texts]
    index = bm25s.BM25(k1=K1, b=B, method="lucene", auto_compile=False)
    index.index(bm25s.tokenization.Tokenized(ids=rows, vocab=ids), show_progress=False)
    return LexicalIndex(index)


def write_lexical(corpus: Corpus, folder: Path, earlier: Path | None) -> None:
    """Write the index of ``corpus`` as ``folder``, or link ``earlier``, the one of the same corpus, if it is there."""
    if earlier is not None and earlier.is_dir():
        link_tree(earlier, folder)
        return
    index = build_lexical(text for _, texts in corpus.blocks() for text in texts)
    index._index.save(folder, show_progress=False)


def open_lexical(folder: Path, rows: int) -> LexicalIndex | None:
    """Map the index in ``folder``; None if there is none. Raises CorruptError if it is torn or not of ``rows``."""
    if not folder.is_dir():
        return None
    try:
        index = LexicalIndex(bm25s.BM25.load(folder, mmap=True, show_progress=False))
    except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{folder}: unreadable ({error}); build the index again") from error
    if index.rows != rows:
        raise CorruptError(f"{folder}: {index.rows} passages where {rows} belong; build the index again")
    return index
