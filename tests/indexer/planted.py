"""Stand-ins that the indexer's tests share: planted vectors, checkpoints and encoders. They do not know pytest."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from indexer.builder import BuildInputs
from indexer.factory import IndexConfig
from indexer.shards import Vectors
from retriever.artifacts import Artifact
from retriever.data import Corpus, QuerySet
from retriever.ingest import load_query_set
from retriever.protocols import FloatArray, Progress, silent
from retriever.store import Store
from tests.stand_ins import HashEncoder, write_json_lines


class QuickEncoder(HashEncoder):
    """A HashEncoder that remembers its words, and says which passages it was given."""

    def __init__(self, dimensions: int = 8, seed: int = 0) -> None:
        super().__init__(dimensions, seed)
        self._words: dict[str, FloatArray] = {}
        self.seen: list[str] = []

    def _word(self, word: str) -> FloatArray:
        if word not in self._words:
            self._words[word] = super()._word(word)
        return self._words[word]

    def encode_passages(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        self.seen += texts
        return super().encode_passages(texts, progress)


class FaultyEncoder(QuickEncoder):
    """Gives the passages that contain ``word`` the vector ``fault`` × 1."""

    def __init__(self, word: str, fault: float, dimensions: int = 8) -> None:
        super().__init__(dimensions)
        self.word, self.fault = word, fault

    def encode_passages(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        vectors = super().encode_passages(texts, progress)
        vectors[[self.word in text.split() for text in texts]] = self.fault
        return vectors


class Cancelled(Exception):
    """Raised by a progress callable to stop the work."""


def plant_vectors(folder: Path, matrix: FloatArray, block_rows: int = 64) -> Vectors:
    """Write ``matrix`` as shards of ``block_rows`` rows and open them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for first in range(0, len(matrix), block_rows):
        paths.append(folder / f"{first // block_rows:05d}.npy")
        np.save(paths[-1], matrix[first : first + block_rows])
    return Vectors(paths)


def unit_rows(rows: int, dimensions: int, seed: int = 0) -> FloatArray:
    """Return random normalised float32 [rows, dimensions]."""
    matrix = np.random.default_rng(seed).standard_normal((rows, dimensions)).astype(np.float32)
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), np.float32)


def plant_checkpoint(store: Store, step: int = 0, weights: int = 0, **facts: object) -> Artifact:
    """Publish a checkpoint whose model is the seed of a HashEncoder."""
    with store.checkpoints.stage(parents={}) as draft:
        (draft.path / "model").mkdir()
        (draft.path / "model" / "seed.json").write_text(json.dumps(weights))
        draft.facts.update(step=step, weights_sha256=f"weights-{weights}", **facts)
    return store.checkpoints.at(draft.number)


def plant_ranker(folder: Path, name: str) -> Path:
    """Write what stands for the files of a ranker below ``folder`` and return ``folder``."""
    (folder / "ranker").mkdir()
    (folder / "ranker" / "config.json").write_text(json.dumps(name))
    return folder


def open_quick_encoder(checkpoint: Artifact) -> QuickEncoder:
    """Open the encoder of a planted checkpoint, or of a generation made from it."""
    return QuickEncoder(8, json.loads((checkpoint.path / "model" / "seed.json").read_text()))


def dev_set(data: Path, corpus: Corpus) -> QuerySet:
    """Return the dev queries of ``data``."""
    return load_query_set(data, "dev", corpus, warn=print)


def build_inputs(data: Path, corpus: Corpus, config: IndexConfig | None = None) -> BuildInputs:
    """Return what a build needs besides its checkpoint, with dev queries and the encoder of planted checkpoints."""
    return BuildInputs(open_quick_encoder, corpus, dev_set(data, corpus), config or IndexConfig())


def write_corpus(folder: Path, texts: Sequence[str]) -> Path:
    """Write a BEIR folder of ``texts`` without queries."""
    folder.mkdir(parents=True)
    write_json_lines(folder / "corpus.jsonl", [{"_id": f"p{i}", "title": "", "text": t} for i, t in enumerate(texts)])
    return folder
