"""A cheap refresh: some passages are encoded, the vectors of the others are mapped or kept from an earlier generation.

Does not know when a partial refresh is due, nor what may be done with its vectors.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial as bound
from pathlib import Path
from typing import Any

import numpy as np

from indexer.drift import fit_drift
from indexer.encode import advance, check_encoded
from indexer.kept_tokens import encode_rows
from indexer.shards import Vectors, block_name, is_intact, open_vectors, shard_path, write_shard
from retriever.artifacts import Artifact
from retriever.data import BLOCK_ROWS, Corpus
from retriever.durable import sha256_json
from retriever.protocols import Encoder, FloatArray, IntArray, Progress

FITTED_ROWS = 32_768
"""Encoded passages that the map is fitted on at most, so that what this takes in memory is no share of the corpus."""


@dataclass(frozen=True)
class Partial:
    """From which generation the vectors follow: ``share`` of the rows is encoded, the next ones at each ``turn``.

    ``turn`` counts partial generations since the last full one, from 0; ``seed`` orders the rows. With ``pools``, a
    negative set and the rows int32 [n], ascending, that it holds, these are encoded and the others keep the vectors
    that they had: enough to score its candidates anew, not to find others.
    """

    parent: Artifact
    turn: int
    share: float
    seed: int
    pools: tuple[Artifact, IntArray] | None = None

    @property
    def method(self) -> str:
        """The [refresh] method that makes such a generation."""
        return "partial" if self.pools is None else "rescore"

    def fingerprint(self, passage: str) -> str:
        """Return what identifies the vectors that an encoder of the ``passage`` fingerprint gives this way."""
        parent = {name: entry["sha256"] for name, entry in self.parent.manifest["files"].items()}
        vectors = {name: digest for name, digest in parent.items() if name.startswith("vectors/")}
        made = {"passage": passage, "vectors": vectors, "turn": self.turn, "share": self.share, "seed": self.seed}
        if self.pools is not None:
            made = {"passage": passage, "vectors": vectors, "rows": hashlib.sha256(self.pools[1].tobytes()).hexdigest()}
        return f"partial-{sha256_json(made)}"

    def rows_due(self, total: int) -> IntArray:
        """Return the rows int32 [n] to encode of a corpus of ``total``: those of ``pools``, or a share in random order.

        Each turn takes the next share of one permutation, so that every row has its turn within 1 / share of them.
        """
        if self.pools is not None:
            return self.pools[1]
        count = min(total, max(1, round(self.share * total)))
        order = np.random.default_rng(self.seed).permutation(total)
        return order[(self.turn * count + np.arange(count)) % total].astype(np.int32)


def encode_partially(
    encoder: Encoder, corpus: Corpus, part: Partial, cache: Path, progress: Progress, warn: Callable[[str], None]
) -> tuple[Vectors, dict[str, Any]]:
    """Return vectors of ``corpus`` for ``encoder`` as ``part`` says, and the facts that tell how they were made.

    What is finished stays in ``cache`` under a fingerprint of its own. Progress counts the encoded passages; whatever
    it raises leaves finished files for the next attempt. Raises StoreError like encode_corpus.
    """
    folder = cache / part.fingerprint(encoder.fingerprints.passage)
    folder.mkdir(parents=True, exist_ok=True)
    parent = open_vectors(part.parent.path / "vectors")
    due = part.rows_due(len(corpus))
    rows = np.sort(due)
    encoded = _encode_rows(encoder, corpus, rows, folder, progress, warn)
    facts = {"method": part.method, "parent": part.parent.number, "turn": part.turn, "encoded_rows": len(rows)}
    moved: Callable[[FloatArray], FloatArray] = np.array  # a copy
    if part.pools is None:
        sample = due[:FITTED_ROWS]  # the first of a random order
        moved = drift = fit_drift(parent.gather(sample), encoded.gather(np.searchsorted(rows, sample)))
        facts |= {"mapped_rows": len(corpus) - len(rows), "cosine_before": drift.cosine_before}
        facts |= {"cosine_mapped": drift.cosine_mapped}
    else:
        facts |= {"kept_rows": len(corpus) - len(rows)}
    paths = [
        _write_block(shard_path(folder, block_name(corpus.sha256, number)), first, block, moved, (rows, encoded), warn)
        for number, (first, block) in enumerate(parent.blocks())
    ]
    return Vectors(paths), facts


def _encode_rows(
    encoder: Encoder, corpus: Corpus, rows: IntArray, folder: Path, progress: Progress, warn: Callable[[str], None]
) -> Vectors:
    """Encode the ``rows``, ascending, in blocks of 4,096 whose token batches depend on each block alone."""
    name = f"rows-{hashlib.sha256(corpus.sha256.encode() + rows.tobytes()).hexdigest()}"
    paths, total = [], len(rows)
    progress(0, total)
    for first in range(0, total, BLOCK_ROWS):
        block = rows[first : first + BLOCK_ROWS]
        path = shard_path(folder, block_name(name, first // BLOCK_ROWS))
        if not is_intact(path, (len(block), encoder.dimensions), warn):
            step = bound(advance, progress, first, total)
            vectors = encode_rows(encoder, corpus, block, folder.parent, step, warn)
            write_shard(path, check_encoded(vectors, encoder.dimensions, corpus, block))
        paths.append(path)
        progress(first + len(block), total)
    return Vectors(paths)


def _write_block(
    path: Path,
    first: int,
    before: FloatArray,
    moved: Callable[[FloatArray], FloatArray],
    exact: tuple[IntArray, Vectors],
    warn: Callable[[str], None],
) -> Path:
    """Write one block of the corpus, from row ``first`` on: ``moved``, and ``exact`` where its rows were encoded."""
    if is_intact(path, before.shape, warn):
        return path
    rows, encoded = exact
    vectors = moved(before)
    start, end = np.searchsorted(rows, (first, first + len(before)))
    vectors[rows[start:end] - first] = encoded.gather(np.arange(start, end))
    write_shard(path, vectors)
    return path
