"""Vectors of real sentences and questions by hone's own encoder: computed once, kept beside the peers' environments.

Does not know what is built on them.
"""

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.environments import bench_folder
from benchmarks.texts import SEED
from indexer.shards import Vectors, is_intact, write_shard
from retriever.beir import read_passages, read_queries
from retriever.data import BLOCK_ROWS
from retriever.durable import sha256_json
from retriever.encoder import ModelConfig, create_encoder
from retriever.inference import ModelEncoder
from retriever.protocols import Encoder, FloatArray

ENDS = re.compile(r"(?<=[.!?;])\s+|\n+")
LEAST_WORDS = 4
TOKENS = 64
"""Longer sentences are cut: few are, and they would cost the most."""
NOISE = 0.5
"""Length of the noise on a vector of length 1: the cosine to what it was is then about .89."""


def sentences(folders: Sequence[Path], count: int) -> list[str]:
    """Return ``count`` distinct sentences of four words or more, those of the first folder first.

    Raises ValueError if there are fewer.
    """
    found: dict[str, None] = {}
    for folder in folders:
        for _, _, _, text in read_passages(folder):
            for sentence in ENDS.split(text):
                if len(sentence.split()) >= LEAST_WORDS:
                    found[sentence.strip()] = None
    if len(found) < count:
        raise ValueError(f"{count} sentences asked for, but the data have {len(found)}; name more with --more")
    return list(found)[:count]


def questions(folder: Path, count: int) -> list[str]:
    """Return ``count`` distinct queries, drawn with a fixed seed."""
    return random.Random(SEED).sample(sorted({text for _, _, text in read_queries(folder)}), count)


def open_encoder() -> ModelEncoder:
    """Open the packaged model as a run would by default."""
    return ModelEncoder(create_encoder(ModelConfig(passage_max_length=TOKENS)), "auto", "cpu", engine="auto")


def passage_vectors(encoder: Encoder, texts: Sequence[str], progress: Callable[[str], None]) -> Vectors:
    """Encode what is not there yet in blocks of 4,096; begun work goes on where it was left."""
    folder = _folder(encoder.fingerprints.passage, texts)
    paths = []
    for first in range(0, len(texts), BLOCK_ROWS):
        block = texts[first : first + BLOCK_ROWS]
        paths.append(folder / f"{first // BLOCK_ROWS:05d}.npy")
        if not is_intact(paths[-1], (len(block), encoder.dimensions), progress):
            write_shard(paths[-1], encoder.encode_passages(block))
            progress(f"encoded {first + len(block)} of {len(texts)} sentences")
    return Vectors(paths)


def perturbed(vectors: Vectors, rows: int, progress: Callable[[str], None]) -> Vectors:
    """Write ``rows`` vectors: each real one as often as needed, with noise of half its length, then normalised."""
    folder = vectors.paths[0].parent.with_name(f"{vectors.paths[0].parent.name}-{rows}")
    folder.mkdir(exist_ok=True)
    paths = []
    for first in range(0, rows, BLOCK_ROWS):
        here = np.arange(first, min(first + BLOCK_ROWS, rows))
        paths.append(folder / f"{first // BLOCK_ROWS:05d}.npy")
        if not is_intact(paths[-1], (len(here), vectors.dimensions), progress):
            noise = np.random.default_rng([SEED, first]).standard_normal((len(here), vectors.dimensions))
            block = vectors.gather(here % len(vectors)) + NOISE / vectors.dimensions**0.5 * noise
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            write_shard(paths[-1], np.asarray(block, np.float32))
    return Vectors(paths)


def query_vectors(encoder: Encoder, texts: Sequence[str]) -> FloatArray:
    """Encode through the query tower, or take what was encoded before."""
    path = _folder(encoder.fingerprints.query, texts) / "queries.npy"
    if not is_intact(path, (len(texts), encoder.dimensions), print):
        write_shard(path, encoder.encode_queries(texts))
    vectors: FloatArray = np.load(path)
    return vectors


def _folder(fingerprint: str, texts: Sequence[str]) -> Path:
    folder = bench_folder() / "vectors" / sha256_json([fingerprint, *texts])[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder
