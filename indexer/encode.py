"""From texts to their embedding shards: block by block, and only the blocks that are not there yet.

Does not know which model encodes or what is built on the vectors.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from indexer.shards import Vectors, is_intact, shard_path, write_shard
from retriever.data import BLOCK_ROWS, Corpus
from retriever.durable import sha256_json
from retriever.errors import StoreError
from retriever.protocols import Encoder, FloatArray, Progress

QueryEncoder = Callable[[Sequence[str]], FloatArray]
"""Texts of queries to their vectors float32 [n, dim]."""


def encode_corpus(
    encoder: Encoder, corpus: Corpus, cache: Path, progress: Progress, warn: Callable[[str], None]
) -> Vectors:
    """Return the vectors of ``corpus``, encoding the blocks that ``cache`` does not hold intact.

    ``cache`` is the folder of all passage fingerprints. Progress counts passages, re-used ones included; whatever it
    raises leaves the finished blocks for the next attempt. Raises StoreError naming the passage for a vector that is
    not finite or is zero.
    """
    folder = cache / encoder.fingerprints.passage
    folder.mkdir(parents=True, exist_ok=True)
    total = len(corpus)
    rows = [min(BLOCK_ROWS, total - first) for first in range(0, total, BLOCK_ROWS)]
    paths = [shard_path(folder, corpus.sha256, block) for block in range(len(rows))]
    missing = {
        block for block, path in enumerate(paths) if not is_intact(path, (rows[block], encoder.dimensions), warn)
    }
    done = total - sum(rows[block] for block in missing)
    progress(done, total)
    for first, texts in corpus.blocks() if missing else ():
        block = first // BLOCK_ROWS
        if block not in missing:
            continue
        vectors = encoder.encode_passages(texts, partial(_advance, progress, done, total))
        vectors = np.ascontiguousarray(vectors, np.float32)
        _check_vectors(vectors, (rows[block], encoder.dimensions), corpus, first)
        write_shard(paths[block], vectors)
        done += len(texts)
        progress(done, total)
    return Vectors(paths)


def _advance(progress: Progress, done_before: int, total: int, done: int, _of_block: int) -> None:
    progress(done_before + done, total)


def _check_vectors(vectors: FloatArray, shape: tuple[int, int], corpus: Corpus, first: int) -> None:
    if vectors.shape != shape:
        raise StoreError(f"the encoder returned vectors {vectors.shape} where {shape} belong")
    sound = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
    wrong = np.flatnonzero(~sound)
    if len(wrong):
        row = first + int(wrong[0])
        kind = "zero" if not vectors[wrong[0]].any() else "not finite"
        raise StoreError(
            f"passage {corpus.id(row)!r} (row {row}): its vector is {kind} ({len(wrong)} of {len(vectors)} vectors of "
            "this block are unusable); the weights have diverged, or the text has no token"
        )


def remembering_queries(encoder: Encoder, cache: Path, warn: Callable[[str], None]) -> QueryEncoder:
    """Return ``encoder.encode_queries``, which encodes a list of texts only once for all who share ``cache``.

    Vectors lie beside the passages', in the folder of the query fingerprint; another checkpoint has another.
    """
    folder = cache / encoder.fingerprints.query

    def encode(texts: Sequence[str]) -> FloatArray:
        folder.mkdir(parents=True, exist_ok=True)
        path = shard_path(folder, sha256_json(list(texts)), 0)
        if not is_intact(path, (len(texts), encoder.dimensions), warn):
            write_shard(path, encoder.encode_queries(texts))
        return Vectors([path]).gather(np.arange(len(texts)))

    return encode
