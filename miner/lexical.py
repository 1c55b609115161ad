"""BM25's candidates: the passages that share words with a query.

Does not know vectors, nor which candidates may be negatives.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from indexer.lexical import ANALYSIS, LexicalIndex, build_lexical
from miner.remembered import RememberedSource
from retriever.data import Corpus
from retriever.durable import sha256_json
from retriever.protocols import IntArray


def lexical_source(corpus: Corpus, queries: Sequence[str], depth: int, folder: Path) -> RememberedSource:
    """Return the source of ``depth`` BM25 candidates for each of ``queries``.

    ``folder`` is a cache that several runs may share.
    """
    key: Mapping[str, object] = {
        "corpus": corpus.sha256,
        "queries": sha256_json(list(queries)),
        "depth": depth,
        "analysis": ANALYSIS,
    }

    @cache
    def index() -> LexicalIndex:
        return build_lexical(text for _, texts in corpus.blocks() for text in texts)

    def search(texts: Sequence[str]) -> IntArray:
        return index().search(texts, depth)[0]

    return RememberedSource(queries, depth, folder / sha256_json(key), search)
