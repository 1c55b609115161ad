"""BM25's candidates: the passages that share words with a query.

Does not know vectors, nor which candidates may be negatives.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from indexer.lexical import ANALYSIS, LexicalIndex, build_lexical
from miner.remembered import RememberedSource
from retriever.data import Corpus
from retriever.durable import keep_only, sha256_json
from retriever.errors import StoreError
from retriever.protocols import IntArray
from retriever.store import Store


def lexical_key(corpus: Corpus, queries: Sequence[str], depth: int) -> str:
    """Return what the cache calls the ``depth`` candidates of each of ``queries``."""
    asked = sha256_json(list(queries))
    return sha256_json({"corpus": corpus.sha256, "queries": asked, "depth": depth, "analysis": ANALYSIS})


def lexical_source(corpus: Corpus, queries: Sequence[str], depth: int, folder: Path) -> RememberedSource:
    """Return the source of ``depth`` BM25 candidates for each of ``queries``.

    ``folder`` is a cache that several runs may share.
    """

    @cache
    def index() -> LexicalIndex:
        return build_lexical(text for _, texts in corpus.blocks() for text in texts)

    def search(texts: Sequence[str]) -> IntArray:
        return index().search(texts, depth)[0]

    return RememberedSource(queries, depth, folder / lexical_key(corpus, queries, depth), search)


def drop_unused_candidates(store: Store) -> list[str]:
    """Delete the cached candidates that no negative set on disk was mined with, and return their folders' names.

    Raises BusyError while another process mines.
    """
    used = set()
    with store.negatives.writer():
        for number in store.negatives.numbers():
            with suppress(StoreError):  # its reader reports it, and searching again takes a minute
                used.add(store.negatives.at(number).facts.get("lexical"))
        return keep_only(store.lexical, used)
