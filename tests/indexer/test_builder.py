import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from indexer import builder
from indexer.builder import BuildInputs, RankerFiles, build_generation
from indexer.evaluation import evaluate
from indexer.exact import exact_search
from indexer.factory import IndexConfig, make_index
from indexer.lexical import ANALYSIS
from indexer.searcher import open_searcher
from indexer.shards import drop_unused, open_vectors
from retriever.artifacts import BEST, CURRENT, SERVED, Artifact
from retriever.data import BLOCK_ROWS, Corpus
from retriever.errors import BusyError, InputError, StoreError
from retriever.protocols import FloatArray
from retriever.store import Store
from tests.indexer.planted import (
    Cancelled,
    FaultyEncoder,
    QuickEncoder,
    build_inputs,
    dev_set,
    open_quick_encoder,
    plant_checkpoint,
    plant_ranker,
    write_corpus,
)
from tests.stand_ins import WORDS, tiny_store

CSC = ("data", "indices", "indptr")


def silent(phase: str, done: int, total: int) -> None:
    """Report to nobody."""


def no_warning(message: str) -> None:
    raise AssertionError(message)


def build(store: Store, checkpoint: Artifact, inputs: BuildInputs) -> Artifact:
    return build_generation(store, checkpoint, inputs, silent, no_warning)


def cancel_at(wanted: str, after: int = 0) -> Callable[[str, int, int], None]:
    def cancel(phase: str, done: int, total: int) -> None:
        if phase == wanted and done >= after:
            raise Cancelled

    return cancel


def published(store: Store) -> list[str]:
    return sorted(path.name for path in store.generations.folder.iterdir())


def test_a_generation_holds_everything_that_answers_from_it(tiny: tuple[Store, Corpus], tiny_data: Path) -> None:
    store, corpus = tiny
    checkpoint = plant_checkpoint(store, step=24, weights=5, refresh=True, final=True)
    generation = build(store, checkpoint, build_inputs(tiny_data, corpus))
    generation.verify()
    lexical = ("params.index.json", "vocab.index.json", *(f"{one}.csc.index.npy" for one in CSC))
    kept = {"dev/queries.json", "dev/ndcg10.npy", *(f"lexical/{name}" for name in lexical)}
    assert set(generation.manifest["files"]) == {"index.faiss", "vectors/00000.npy", "model/seed.json"} | kept
    assert generation.parents == {"checkpoint": checkpoint.number, "corpus": corpus.number}
    assert (generation.path / "model/seed.json").samefile(checkpoint.path / "model/seed.json")
    encoder, dev = open_quick_encoder(generation), dev_set(tiny_data, corpus)
    queries, vectors = encoder.encode_queries(dev.texts), open_vectors(generation.path / "vectors")
    np.testing.assert_array_equal(vectors.gather(np.arange(60)), encoder.encode_passages(corpus.texts(range(60))))
    found, facts = open_searcher(generation).search(queries, 20)[0], dict(generation.facts)
    np.testing.assert_array_equal(found, exact_search(queries, vectors, 20)[0])
    phases = {"encode", "index", "check", "evaluate", "lexical"}
    assert facts.pop("built_on") == "cpu" and set(facts.pop("seconds")) == phases
    expected = evaluate(dev, queries, vectors, lambda q, depth: exact_search(q, vectors, depth)).metrics
    assert facts.pop("dev") == pytest.approx(expected)
    assert set(expected) == {"nDCG@10", "RR@10", "R@100", "AUC", "separation"}
    assert facts == {
        "step": 24,
        "refresh": True,
        "final": True,
        "weights_sha256": "weights-5",
        "passage_fingerprint": "hash-8-5-passage",
        "query_fingerprint": "hash-8-5-query",
        "space": "hash-8-5",
        "computed_by": "hashing",
        "corpus_sha256": corpus.sha256,
        "index_config": {**asdict(IndexConfig()), "slices": []},
        "rows": 60,
        "dim": 8,
        "metric": "ip",
        "factory": "Flat",
        "search": {},
        "search_deep": None,
        "front": [],
        "recall_at_10": 1.0,
        "recall_at_10_error": 0.0,
        "lexical": ANALYSIS,
        "recall_at_100": 1.0,
        "recall_queries": {"from": "dev", "count": 10},
        "dev_queries": 10,
        "dev_sha256": dev.sha256,
        "gate": {
            "served": True,
            "best": True,
            "reason": "no generation was served before",
            "checks": [
                {
                    "name": "recall",
                    "passed": True,
                    "reason": "recall@10 1.0000 ± 0.0000 against exact search, target 0.95",
                }
            ],
            "against": None,
        },
    }
    assert store.generations.pointers() == {CURRENT: 0, SERVED: 0, BEST: 0, "JUDGED": 0}


def test_without_dev_queries_recall_is_that_of_passages(tiny: tuple[Store, Corpus]) -> None:
    store, corpus = tiny
    inputs = BuildInputs(open_quick_encoder, corpus, None, IndexConfig())
    facts = build(store, plant_checkpoint(store), inputs).facts
    assert facts["recall_queries"] == {"from": "passages", "count": 60}
    assert (facts["dev"], facts["dev_queries"], facts["dev_sha256"]) == ({}, 0, None)
    assert store.generations.pointed(SERVED) == 0 and store.generations.pointed(BEST) is None


def test_passages_that_occur_many_times_keep_no_exact_index_from_being_served(tmp_path: Path) -> None:
    texts = [f"{WORDS[row % 30]} {WORDS[row % 30 + 1]}" for row in range(600)]
    store, corpus = tiny_store(tmp_path / "store", write_corpus(tmp_path / "data", texts))
    facts = build(store, plant_checkpoint(store), BuildInputs(open_quick_encoder, corpus, None, IndexConfig())).facts
    assert facts["factory"] == "Flat" and facts["recall_at_10"] == facts["recall_at_100"] == 1
    assert store.generations.pointed(SERVED) == 0


def test_unchanged_weights_encode_nothing_and_give_the_same_index(tiny: tuple[Store, Corpus], tiny_data: Path) -> None:
    store, corpus = tiny
    encoders: list[QuickEncoder] = []

    def open_encoder(checkpoint: Artifact) -> QuickEncoder:
        encoders.append(open_quick_encoder(checkpoint))
        return encoders[-1]

    inputs = replace(build_inputs(tiny_data, corpus), open_encoder=open_encoder)
    first, second, third = (
        build(store, plant_checkpoint(store, step, weights), inputs) for step, weights in enumerate((0, 0, 1))
    )
    assert [encoder.encoded_passages for encoder in encoders] == [60, 0, 60]
    assert first.sha256("index.faiss") == second.sha256("index.faiss") != third.sha256("index.faiss")
    store.retain("generations", keep=1, grace_seconds=-1)
    assert set(drop_unused(store)) <= {"hash-8-0-passage"}


def test_a_trained_index_is_tuned_once_and_kept(wide: tuple[Store, Corpus], wide_data: Path) -> None:
    store, corpus = wide
    inputs = build_inputs(wide_data, corpus, IndexConfig("IVF32,Flat"))
    first = build(store, plant_checkpoint(store), inputs)
    assert first.facts["factory"] == "IVF32,Flat" and first.facts["search"]["nprobe"] >= 4
    assert first.facts["search_deep"]["depth"] == 200
    assert first.facts["search_deep"]["parameters"]["nprobe"] >= first.facts["search"]["nprobe"]
    assert len(first.facts["front"]) >= 1 and first.facts["recall_at_100"] > 0.8
    second = build(store, plant_checkpoint(store, step=1), inputs)
    assert second.facts["front"] == first.facts["front"]
    assert second.sha256("index.faiss") == first.sha256("index.faiss")


@pytest.mark.parametrize("phase", ["encode", "index", "check", "evaluate", "publish"])
def test_a_build_cancelled_in_any_phase_publishes_nothing(
    tiny: tuple[Store, Corpus], tiny_data: Path, phase: str
) -> None:
    store, corpus = tiny
    checkpoint, inputs = plant_checkpoint(store), build_inputs(tiny_data, corpus)
    with pytest.raises(Cancelled):
        build_generation(store, checkpoint, inputs, cancel_at(phase), no_warning)
    assert published(store) == []
    assert build(store, checkpoint, inputs).number == 0


def test_a_resumed_build_encodes_the_missing_blocks_and_gives_the_same_bytes(
    wide: tuple[Store, Corpus], wide_data: Path, tmp_path: Path
) -> None:
    store, corpus = wide
    undisturbed_store = Store(tmp_path / "undisturbed", create=True)
    config = IndexConfig("IVF32,PQ8x4fs,RFlat", search={"nprobe": 16, "k_factor": 32})
    encoders: list[QuickEncoder] = []

    def open_encoder(checkpoint: Artifact) -> QuickEncoder:
        encoders.append(open_quick_encoder(checkpoint))
        return encoders[-1]

    inputs = replace(build_inputs(wide_data, corpus, config), open_encoder=open_encoder)
    undisturbed = build(undisturbed_store, plant_checkpoint(undisturbed_store), inputs)
    checkpoint = plant_checkpoint(store)
    with pytest.raises(Cancelled):
        build_generation(store, checkpoint, inputs, cancel_at("encode", after=BLOCK_ROWS + 1), no_warning)
    with pytest.raises(Cancelled):
        build_generation(store, checkpoint, inputs, cancel_at("index", after=BLOCK_ROWS), no_warning)
    resumed = build(store, checkpoint, inputs)
    assert encoders[2].seen == corpus.texts(range(BLOCK_ROWS, 9000))
    assert encoders[3].seen == []
    assert resumed.manifest["files"] == undisturbed.manifest["files"]
    assert resumed.facts["recall_at_100"] == undisturbed.facts["recall_at_100"] > 0.7


@pytest.mark.parametrize(
    ("config", "message"),
    [(IndexConfig("IVF99,Flat"), "at least 99 passages"), (IndexConfig("Flat", search={"nprobe": 2}), "takes none")],
)
def test_an_index_that_faiss_refuses_is_refused_before_anything_is_encoded(
    tiny: tuple[Store, Corpus], tiny_data: Path, config: IndexConfig, message: str
) -> None:
    store, corpus = tiny
    with pytest.raises(InputError, match=message):
        build(store, plant_checkpoint(store), build_inputs(tiny_data, corpus, config))
    assert list(store.embeddings.iterdir()) == [] and published(store) == []


def shuffled_ids(*arguments: Any) -> tuple[faiss.Index, Any]:
    """Build the index that was asked for, with every vector under another row's id."""
    vectors, (_, choice) = arguments[0], make_index(*arguments)
    index = faiss.IndexFlatIP(vectors.dimensions)
    index.add(np.roll(vectors.gather(np.arange(len(vectors))), 1, axis=0))
    return index, choice


def missing_rows(*arguments: Any) -> tuple[faiss.Index, Any]:
    """Build the index that was asked for, without the last ten rows."""
    vectors, (_, choice) = arguments[0], make_index(*arguments)
    index = faiss.IndexFlatIP(vectors.dimensions)
    index.add(vectors.gather(np.arange(len(vectors) - 10)))
    return index, choice


@pytest.mark.parametrize(("fault", "message"), [(shuffled_ids, "do not find themselves"), (missing_rows, "50 index")])
def test_a_faulty_index_is_never_published(
    tiny: tuple[Store, Corpus],
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[..., tuple[faiss.Index, Any]],
    message: str,
) -> None:
    store, corpus = tiny
    monkeypatch.setattr(builder, "make_index", fault)
    with pytest.raises(StoreError, match=message):
        build(store, plant_checkpoint(store), build_inputs(tiny_data, corpus))
    assert published(store) == []


def test_diverged_weights_are_never_published(tiny: tuple[Store, Corpus], tiny_data: Path) -> None:
    store, corpus = tiny
    inputs = replace(build_inputs(tiny_data, corpus), open_encoder=lambda _: FaultyEncoder(WORDS[0], np.nan))
    with pytest.raises(StoreError, match="not finite"):
        build(store, plant_checkpoint(store), inputs)
    assert published(store) == []


def test_a_second_build_is_refused_before_it_encodes(tiny: tuple[Store, Corpus], tiny_data: Path) -> None:
    store, corpus = tiny
    checkpoint, inputs = plant_checkpoint(store), build_inputs(tiny_data, corpus)
    with Store(store.root).generations.writer(), pytest.raises(BusyError):
        build(store, checkpoint, inputs)
    assert list(store.embeddings.iterdir()) == []


def test_a_broken_predecessor_does_not_stop_the_next_build(tiny: tuple[Store, Corpus], tiny_data: Path) -> None:
    store, corpus = tiny
    inputs, said = build_inputs(tiny_data, corpus), list[str]()
    build(store, plant_checkpoint(store), inputs)
    (store.generations.path(0) / "manifest.json").write_text("torn")
    second = build_generation(store, plant_checkpoint(store, step=1), inputs, silent, said.append)
    assert (second.number, store.generations.pointed(SERVED)) == (1, 1)
    assert len(said) == 1 and "manifest.json" in said[0]


def test_a_worse_generation_is_published_but_not_served(tiny: tuple[Store, Corpus], tiny_data: Path) -> None:
    store, corpus = tiny

    class Deaf(QuickEncoder):
        """Hears every query as the same."""

        def encode_queries(self, texts: Any, progress: Any = None) -> FloatArray:
            return super().encode_queries(["ba"] * len(texts))

    build(store, plant_checkpoint(store), build_inputs(tiny_data, corpus))
    worse = replace(build_inputs(tiny_data, corpus), open_encoder=lambda _: Deaf())
    build(store, plant_checkpoint(store, step=1), worse)
    assert store.generations.pointers() == {CURRENT: 1, SERVED: 0, BEST: 0, "JUDGED": 1}
    judged = store.generations.at(1)
    assert [check["name"] for check in judged.facts["gate"]["checks"] if not check["passed"]] == ["dev", "flips"]
    assert judged.facts["gate"]["against"] == 0
    figures = [np.load(store.generations.path(number) / "dev/ndcg10.npy") for number in (1, 0)]
    np.testing.assert_array_equal(np.load(judged.path / "dev/differences.npy"), figures[0] - figures[1])


def test_a_generation_holds_its_checkpoints_ranker_or_the_one_it_is_given(
    tiny: tuple[Store, Corpus], tiny_data: Path, tmp_path: Path
) -> None:
    store, corpus = tiny
    checkpoint = plant_ranker(plant_checkpoint(store, step=24, weights=5, ranker={"weights_sha256": "own"}).path, "own")
    inputs = build_inputs(tiny_data, corpus)
    own = build(store, store.checkpoints.at(0), inputs)
    assert own.facts["ranker"] == {"weights_sha256": "own"} and "ranker/config.json" in own.manifest["files"]
    assert (own.path / "ranker/config.json").samefile(checkpoint / "ranker/config.json")
    other = RankerFiles(plant_ranker(tmp_path, "other") / "ranker", {"weights_sha256": "other"})
    given = build(store, store.checkpoints.at(0), replace(inputs, ranker=other))
    assert given.facts["ranker"] == {"weights_sha256": "other"}
    assert json.loads((given.path / "ranker/config.json").read_text()) == "other"
    given.verify()
    assert "ranker" not in build(store, plant_checkpoint(store, step=25), inputs).facts
