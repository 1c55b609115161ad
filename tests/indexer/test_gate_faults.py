"""The promise of the gate over real small generations: planted faults are refused, equals are let through."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer import builder
from indexer.builder import build_generation
from indexer.factory import make_index
from indexer.faiss_index import build_index
from indexer.promotion import shared_figures
from indexer.shards import Vectors
from retriever.artifacts import SERVED, Artifact
from retriever.data import Corpus
from retriever.errors import StoreError
from retriever.ingest import ingest_corpus
from retriever.protocols import Encoder, Fingerprints, FloatArray, Progress, silent
from retriever.store import Store
from tests.indexer.planted import QuickEncoder, build_inputs, plant_checkpoint
from tests.stand_ins import tiny_store, write_tiny_data

DIMENSIONS = 24
EQUALS = 20


class TrainedEncoder(QuickEncoder):
    """An encoder whose training went as its ``seed`` would have it: each text's vector is off by ``noise``.

    Queries and passages are to be read after a prompt; the weights answer to it.
    """

    def __init__(self, seed: int, noise: float = 0.2) -> None:
        super().__init__(DIMENSIONS)
        self.chance, self.noise = seed, noise
        self.fingerprints = Fingerprints(f"passage-{seed}-{noise}", f"query-{seed}-{noise}", f"space-{seed}-{noise}")
        self.prompted = np.linalg.qr(np.random.default_rng(5).standard_normal((DIMENSIONS, DIMENSIONS)))[0]

    def pool(self, texts: Sequence[str]) -> FloatArray:
        clean = super().encode_queries(texts)
        off = QuickEncoder(DIMENSIONS, seed=1000 + self.chance).encode_queries(
            [text.replace(" ", "_") for text in texts]
        )
        return np.asarray(clean + self.noise * off, np.float32)

    def encode_queries(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        return np.asarray(self.pool(texts) @ self.prompted, np.float32)

    def encode_passages(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        return np.asarray(self.pool(texts) @ self.prompted, np.float32)


class ShuffledIds(TrainedEncoder):
    """Gives each row the vector of the next."""

    def encode_passages(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        return np.roll(super().encode_passages(texts), 1, axis=0)


class WrongPooling(TrainedEncoder):
    """Pools passages by their first word, queries by the mean of all."""

    def encode_passages(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        return super().encode_passages([text.split()[0] for text in texts])


class WrappedAround(TrainedEncoder):
    """Computes in a number format that is too narrow: large values come out with the other sign."""

    def encode_passages(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        vectors = super().encode_passages(texts)
        return np.asarray((vectors + 0.3) % 0.6 - 0.3, np.float32)


class Overflowed(TrainedEncoder):
    """Computes in a number format that is too narrow: large values come out as infinite."""

    def encode_passages(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        vectors = super().encode_passages(texts)
        return np.where(np.abs(vectors) > 0.7, np.inf, vectors)


class PromptDropped(TrainedEncoder):
    """Reads queries without their prompt."""

    def encode_queries(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        return self.pool(texts)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder of 800 passages with 200 dev queries."""
    return write_tiny_data(tmp_path_factory.mktemp("gate") / "data", passages=800, queries=800)


@pytest.fixture
def served(tmp_path: Path, data: Path) -> tuple[Store, Corpus]:
    """A store that serves a generation of a soundly trained encoder of step 100."""
    store, corpus = tiny_store(tmp_path / "store", data)
    assert build(store, corpus, data, TrainedEncoder(0)).facts["gate"]["served"]
    return store, corpus


def build(store: Store, corpus: Corpus, data: Path, encoder: Encoder, step: int = 100) -> Artifact:
    inputs = replace(build_inputs(data, corpus), open_encoder=lambda _: encoder)
    return build_generation(store, plant_checkpoint(store, step), inputs, lambda *_: None, print)


def refused_by(generation: Artifact) -> list[str]:
    return [check["name"] for check in generation.facts["gate"]["checks"] if not check["passed"]]


@pytest.mark.parametrize(
    "encoder",
    [ShuffledIds(1), WrongPooling(1), WrappedAround(1), PromptDropped(1), TrainedEncoder(1, noise=0.5)],
    ids=["shuffled ids", "wrong pooling", "overflow", "prompt dropped", "stale weights"],
)
def test_a_fault_that_only_answers_show_is_refused(
    served: tuple[Store, Corpus], data: Path, encoder: TrainedEncoder
) -> None:
    store, corpus = served
    generation = build(store, corpus, data, encoder)
    assert "dev" in refused_by(generation), generation.facts["gate"]
    assert store.generations.pointed(SERVED) == 0
    _, places, pairs = shared_figures(generation, store.generations.at(0))
    changes = pairs.now - pairs.before
    np.testing.assert_array_equal(np.load(generation.path / "dev" / "differences.npy")[places], changes)
    assert changes.mean() == pytest.approx(
        generation.facts["dev"]["nDCG@10"] - store.generations.at(0).facts["dev"]["nDCG@10"], abs=1e-6
    )


def test_an_older_checkpoint_is_refused_whatever_its_figures(served: tuple[Store, Corpus], data: Path) -> None:
    store, corpus = served
    assert refused_by(build(store, corpus, data, TrainedEncoder(1, noise=0.1), step=50)) == ["step"]
    assert store.generations.pointed(SERVED) == 0


def test_an_overflow_is_not_even_published(served: tuple[Store, Corpus], data: Path) -> None:
    store, corpus = served
    with pytest.raises(StoreError, match="not finite"):
        build(store, corpus, data, Overflowed(1))
    assert store.generations.numbers() == [0]


def of_all_but_a_twentieth(vectors: Vectors, *others: Any) -> Any:
    """Build the index that was asked for, without the last 5 % of the rows."""
    _, choice = make_index(vectors, *others)
    kept = vectors.gather(np.arange(len(vectors) * 19 // 20))
    folder = Path(str(vectors.paths[0])).parent / "fewer"
    folder.mkdir()
    np.save(folder / "00000.npy", kept)
    return build_index("Flat", Vectors([folder / "00000.npy"]), 0), choice


def test_an_index_without_a_twentieth_of_the_passages_is_not_even_published(
    served: tuple[Store, Corpus], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, corpus = served
    monkeypatch.setattr(builder, "make_index", of_all_but_a_twentieth)
    with pytest.raises(StoreError, match="800 passages, 800 vectors, 760 index entries"):
        build(store, corpus, data, TrainedEncoder(1))
    assert store.generations.numbers() == [0]


def test_a_corpus_without_a_twentieth_of_the_passages_is_refused(
    served: tuple[Store, Corpus], data: Path, tmp_path: Path
) -> None:
    store, _ = served
    fewer = write_tiny_data(tmp_path / "fewer", passages=800, queries=700)
    lines = (fewer / "corpus.jsonl").read_text().splitlines(keepends=True)
    (fewer / "corpus.jsonl").write_text("".join(lines[:760]))
    corpus = Corpus(ingest_corpus(store, fewer))
    assert "rows" in refused_by(build(store, corpus, fewer, TrainedEncoder(1)))
    assert store.generations.pointed(SERVED) == 0


def test_equals_are_promoted(served: tuple[Store, Corpus], data: Path) -> None:
    """Twenty encoders that differ by chance alone, each judged against the one that is served by then."""
    promoted = sum(build(*served, data, TrainedEncoder(seed)).facts["gate"]["served"] for seed in range(1, EQUALS + 1))
    assert promoted >= 19
