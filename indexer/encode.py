"""From texts to their embedding shards: block by block, and only the blocks that are not there yet.

Does not know which model encodes or what is built on the vectors.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from indexer.kept_tokens import encode_texts
from indexer.shards import Vectors, block_name, is_intact, shard_path, write_shard
from retriever.data import BLOCK_ROWS, Corpus
from retriever.durable import sha256_json
from retriever.errors import StoreError
from retriever.protocols import Encoder, FloatArray, IntArray, Progress, silent

QueryEncoder = Callable[[Sequence[str]], FloatArray]
"""Texts of queries to their vectors float32 [n, dim]."""


def encode_corpus(
    encoder: Encoder, corpus: Corpus, cache: Path, progress: Progress, warn: Callable[[str], None]
) -> Vectors:
    """Return the vectors of ``corpus``, encoding the blocks that ``cache`` does not hold intact.

    A block goes by its texts, so one that an earlier corpus had, too, is not encoded again. ``cache`` is the folder of
    all fingerprints; token ids are kept there as well. Progress counts passages, re-used ones included; whatever it
    raises leaves the finished blocks for the next attempt. Raises StoreError naming the passage for a vector that is
    not finite or is zero.
    """
    folder = cache / encoder.fingerprints.passage
    folder.mkdir(parents=True, exist_ok=True)
    total = len(corpus)
    rows = [min(BLOCK_ROWS, total - first) for first in range(0, total, BLOCK_ROWS)]
    paths = [shard_path(folder, name) for name in corpus.block_sha256]
    missing = {
        block for block, path in enumerate(paths) if not is_intact(path, (rows[block], encoder.dimensions), warn)
    }
    done = total - sum(rows[block] for block in missing)
    progress(done, total)
    for first, texts in corpus.blocks() if missing else ():
        block = first // BLOCK_ROWS
        if block not in missing:
            continue
        name, step = corpus.block_sha256[block], partial(advance, progress, done, total)
        vectors = encode_texts(encoder, "passage", texts, cache, name, step, warn)
        write_shard(paths[block], check_encoded(vectors, encoder.dimensions, corpus, range(first, first + len(texts))))
        done += len(texts)
        progress(done, total)
    return Vectors(paths)


def advance(progress: Progress, done_before: int, total: int, done: int, _of_block: int) -> None:
    """Tell ``progress`` of a block's ``done`` after those ``done_before``: bind all but the last two."""
    progress(done_before + done, total)


def check_encoded(vectors: FloatArray, dimensions: int, corpus: Corpus, rows: Sequence[int] | IntArray) -> FloatArray:
    """Return ``vectors`` of the passages at ``rows`` as float32 [rows, dimensions].

    Raises StoreError if they have another shape, or naming the passage whose vector is not finite or is zero.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    shape = (len(rows), dimensions)
    if vectors.shape != shape:
        raise StoreError(f"the encoder returned vectors {vectors.shape} where {shape} belong")
    sound = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
    wrong = np.flatnonzero(~sound)
    if len(wrong):
        row = int(rows[wrong[0]])
        kind = "zero" if not vectors[wrong[0]].any() else "not finite"
        raise StoreError(
            f"passage {corpus.id(row)!r} (row {row}): its vector is {kind} ({len(wrong)} of {len(vectors)} vectors of "
            "this block are unusable); the weights have diverged, or the text has no token"
        )
    return vectors


def remembering_queries(encoder: Encoder, cache: Path, warn: Callable[[str], None]) -> QueryEncoder:
    """Return ``encoder.encode_queries``, which encodes a list of texts only once for all who share ``cache``.

    Vectors lie beside the passages', in the folder of the query fingerprint; another checkpoint has another. ``encode``
    raises StoreError naming the query for a vector that is not finite.
    """
    folder = cache / encoder.fingerprints.query

    def encode(texts: Sequence[str]) -> FloatArray:
        folder.mkdir(parents=True, exist_ok=True)
        name = block_name(sha256_json(list(texts)), 0)
        path = shard_path(folder, name)
        if not is_intact(path, (len(texts), encoder.dimensions), warn):
            vectors = encode_texts(encoder, "query", texts, cache, name, silent, warn)
            _check_queries(vectors, texts)
            write_shard(path, vectors)
        return Vectors([path]).gather(np.arange(len(texts)))

    return encode


def _check_queries(vectors: FloatArray, texts: Sequence[str]) -> None:
    wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(wrong):
        raise StoreError(
            f"query {texts[wrong[0]]!r}: its vector is not finite ({len(wrong)} of {len(texts)} are unusable); the "
            "weights have diverged"
        )
