"""The promise of the gate over real small generations: planted faults are refused, equals are let through."""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer import builder
from indexer.builder import build_generation
from indexer.factory import IndexConfig, make_index
from indexer.faiss_index import build_index
from indexer.promotion import promote, shared_figures
from indexer.shards import Vectors
from retriever.artifacts import SERVED, Artifact
from retriever.data import Corpus
from retriever.errors import InputError, StoreError
from retriever.ingest import ingest_corpus
from retriever.protocols import Encoder, Fingerprints, FloatArray, Progress, silent
from retriever.store import Store
from tests.indexer.planted import QuickEncoder, build_inputs, plant_checkpoint, plant_ranker
from tests.stand_ins import OverlapRanker, tiny_store, write_json_lines, write_tiny_data

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


class Forgetful(TrainedEncoder):
    """Trained better than others, but reads a third of the prompt of the queries ``forgotten``."""

    def __init__(self, forgotten: set[str]) -> None:
        super().__init__(1, noise=0.1)
        self.forgotten = forgotten

    def encode_queries(self, texts: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n, dimensions]."""
        rows = np.array([text in self.forgotten for text in texts])[:, None]
        vectors = super().encode_queries(texts)
        return np.where(rows, 0.35 * vectors + 0.65 * self.pool(texts), vectors).astype(np.float32)


def test_a_generation_that_is_better_but_for_one_language_is_refused(tmp_path: Path) -> None:
    """33 of 200 dev queries are in Finnish, four in Greek, and half of all are of each year."""
    data = write_tiny_data(tmp_path / "data", passages=800, queries=800)
    lines = [json.loads(line) for line in (data / "queries.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        language = "el" if number % 50 == 0 else "fi" if number % 6 == 1 else "de"
        line["metadata"] = {"language": language, "year": 2020 + number // 2 % 2}
    write_json_lines(data / "queries.jsonl", lines)
    finnish = {line["text"] for line in lines if line["metadata"]["language"] == "fi"}
    store, corpus = tiny_store(tmp_path / "store", data)
    config = IndexConfig(slices=("language", "year"))

    def build_sliced(encoder: Encoder, config: IndexConfig = config) -> Artifact:
        inputs = replace(build_inputs(data, corpus, config), open_encoder=lambda _: encoder)
        return build_generation(store, plant_checkpoint(store, 100), inputs, lambda *_: None, print)

    build_sliced(TrainedEncoder(0, noise=0.3))
    made = build_sliced(Forgetful(finnish))
    assert made.facts["dev"]["nDCG@10"] > store.generations.at(0).facts["dev"]["nDCG@10"] + 0.01
    assert refused_by(made) == ["slices"], made.facts["gate"]
    assert store.generations.pointed(SERVED) == 0
    (check,) = [one for one in made.facts["gate"]["checks"] if one["name"] == "slices"]
    told = {one["name"]: one for one in check["slices"]}
    assert {name: one["queries"] for name, one in told.items()} == {
        "language=de": 163,
        "language=fi": 33,
        "year=2020": 100,
        "year=2021": 100,
    }
    assert [name for name, one in told.items() if not one["passed"]] == ["language=fi"]
    assert told["language=fi"]["now"] < told["language=fi"]["before"] - 0.1
    assert check["reason"].startswith("of 4 slices") and check["reason"].endswith("fewer: 1 ('language=el')")
    assert "'language=fi' by 0." in made.facts["gate"]["reason"]
    with pytest.raises(InputError, match=f"generation {made.number} is refused by the gate: of 4 slices"):
        promote(store)
    unsliced = build_sliced(Forgetful(finnish), IndexConfig())
    assert refused_by(unsliced) == [] and store.generations.pointed(SERVED) == unsliced.number
    assert unsliced.facts["factory"] == made.facts["factory"] == "Flat"
    with pytest.raises(InputError, match="no dev query has 'lang' in its metadata; there are: language, year"):
        build_sliced(TrainedEncoder(0), IndexConfig(slices=("lang",)))


class TurnedRanker(OverlapRanker):
    """A ranker whose sign was lost: it puts last what it should put first."""

    def score(self, queries: Sequence[str], passages: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n]."""
        return -super().score(queries, passages, progress)


class HalfTurnedRanker(OverlapRanker):
    """A ranker that reads some queries rightly and turns the order of the others."""

    def score(self, queries: Sequence[str], passages: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n]."""
        signs = np.array([1 if sum(map(ord, query)) % 4 else -1 for query in queries], np.float32)
        return np.asarray(signs * super().score(queries, passages, progress), np.float32)


class TrainedRanker(OverlapRanker):
    """A ranker whose training went as its ``seed`` would have it: each pair's score is off by chance."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.chance = seed

    def score(self, queries: Sequence[str], passages: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n]."""
        off = [
            zlib.crc32(f"{self.chance} {one} {other}".encode()) for one, other in zip(queries, passages, strict=True)
        ]
        noise = np.array(off) / 2**31 - 1
        return np.asarray(super().score(queries, passages) + 2 * noise, np.float32)


RANKERS: dict[str, Callable[[], OverlapRanker]] = {
    "good": OverlapRanker,
    "turned": TurnedRanker,
    "half": HalfTurnedRanker,
    **{f"trained {seed}": partial(TrainedRanker, seed) for seed in range(EQUALS + 1)},
}


def build_ranked(store: Store, corpus: Corpus, data: Path, name: str, step: int = 100, **settings: Any) -> Artifact:
    """Build a generation of a soundly trained encoder with a ranker, both of the same checkpoint."""
    checkpoint = plant_checkpoint(store, step, ranker={"name": name})
    plant_ranker(checkpoint.path, name)
    inputs = replace(
        build_inputs(data, corpus, IndexConfig(**settings)),
        open_encoder=lambda _: TrainedEncoder(0, noise=0.4),
        open_ranker=lambda held: RANKERS[held.facts["name"]](),
    )
    return build_generation(store, store.checkpoints.at(checkpoint.number), inputs, lambda *_: None, print)


def test_a_ranker_with_its_sign_turned_is_refused_and_a_good_one_is_served(tmp_path: Path, data: Path) -> None:
    store, corpus = tiny_store(tmp_path / "store", data)
    turned = build_ranked(store, corpus, data, "turned")
    assert refused_by(turned) == ["ranker"] and store.generations.pointed(SERVED) is None, "though nothing was served"
    with pytest.raises(InputError, match="refused by the gate: dev nDCG@10 reranked 0"):
        promote(store)
    good = build_ranked(store, corpus, data, "good")
    assert refused_by(good) == [] and store.generations.pointed(SERVED) == good.number
    told = good.facts["reranked"]
    assert (told["depth"], told["queries"], told["pairs"]) == (20, 100, 2000)
    assert told["nDCG@10"] > told["before"] + 0.05 > turned.facts["reranked"]["nDCG@10"] + 0.2
    again = build_ranked(store, corpus, data, "turned")
    assert refused_by(again) == ["ranker", "reranked"] and store.generations.pointed(SERVED) == good.number
    assert np.isnan(np.load(again.path / "dev/reranked.npy")).sum() == 100, "a half of the dev queries is the sample"
    figures = [np.load(one.path / "dev/reranked.npy") for one in (again, good)]
    np.testing.assert_array_equal(np.load(again.path / "dev/reranked_differences.npy"), figures[0] - figures[1])


def test_a_ranker_that_helps_less_than_the_served_one_is_refused(tmp_path: Path, data: Path) -> None:
    store, corpus = tiny_store(tmp_path / "store", data)
    build_ranked(store, corpus, data, "good")
    helping = build_ranked(store, corpus, data, "half")
    assert helping.facts["reranked"]["nDCG@10"] > helping.facts["reranked"]["before"] - 0.01
    assert refused_by(helping) == ["reranked"]
    deeper = build_ranked(store, corpus, data, "half", rerank_depth=40)
    assert refused_by(deeper) == [], "figures of another depth are not compared"


def test_without_a_ranker_or_where_it_is_not_asked_nothing_is_reranked(tmp_path: Path, data: Path) -> None:
    store, corpus = tiny_store(tmp_path / "store", data)
    bare = build(store, corpus, data, TrainedEncoder(0, noise=0.4))
    unasked = build_ranked(store, corpus, data, "turned", rerank_depth=0)
    for generation in (bare, unasked):
        assert refused_by(generation) == [] and "reranked" not in generation.facts
        assert "rerank" not in generation.facts["seconds"]
        assert not {"dev/reranked.npy", "dev/reranked_differences.npy"} & set(generation.manifest["files"])


def test_equal_rankers_are_promoted(tmp_path: Path, data: Path) -> None:
    """Rankers that differ by chance alone, each judged against the one that is served by then."""
    store, corpus = tiny_store(tmp_path / "store", data)
    made = [build_ranked(store, corpus, data, f"trained {seed}") for seed in range(EQUALS + 1)]
    assert sum(one.facts["gate"]["served"] for one in made) >= 20
    means = [one.facts["reranked"]["nDCG@10"] for one in made]
    assert np.ptp(means) > 0.01 and max(means) < 0.98, "they do differ, and none is perfect"
