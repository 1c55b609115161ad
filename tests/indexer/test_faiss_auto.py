import numpy as np
import pytest
from faiss import Index
from hypothesis import given
from hypothesis import strategies as st

from indexer import faiss_auto
from indexer.exact import exact_search
from indexer.faiss_auto import Choice, Point, choose_index, make_probe, measure, pick
from indexer.faiss_index import build_index, search_index
from indexer.quality import recall_at
from indexer.shards import Vectors
from tests.indexer.planted import plant_vectors, unit_rows

QUERIES = unit_rows(60, 16, seed=1)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    return plant_vectors(tmp_path_factory.mktemp("vectors"), unit_rows(3000, 16), block_rows=1024)


def point(name: str, recall: float, speed: float) -> Point:
    return {"factory": name, "parameters": {}, "recall": recall, "queries_per_second": speed}


def test_a_small_corpus_is_flat_and_unmeasured(vectors: Vectors) -> None:
    assert choose_index(vectors, QUERIES, 0.95) == Choice("Flat", {}, ())


def test_a_large_corpus_gets_what_was_measured_to_reach_the_target(
    vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_auto, "FLAT_ROWS", 3000)
    choice = choose_index(vectors, QUERIES, 0.9, k=10)
    chosen = next(p for p in choice.front if (p["factory"], p["parameters"]) == (choice.factory, choice.parameters))
    assert chosen["recall"] >= 0.9 and chosen["queries_per_second"] > 0 and chosen["bytes"] > 0
    assert all(p["recall"] < 0.9 for p in choice.front if p["queries_per_second"] > chosen["queries_per_second"])
    rows, _ = search_index(build_index(choice.factory, vectors, 13), QUERIES, 10, choice.parameters)
    assert recall_at(rows, exact_search(QUERIES, vectors, 10)[0], 10) == chosen["recall"]


def test_the_candidates_fit_dimensions_and_rows(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_auto, "FLAT_ROWS", 3000)
    built: list[str] = []

    def build(factory: str, vectors: Vectors, seed: int) -> Index:
        built.append(factory)
        return build_index(factory, vectors, seed)

    monkeypatch.setattr(faiss_auto, "GRID", dict.fromkeys(faiss_auto.GRID, (2,)))
    monkeypatch.setattr(faiss_auto, "build_index", build)
    choose_index(vectors, QUERIES, 0.9)
    assert built == ["Flat", "PQ8x4fs,RFlat", "IVF256,PQ8x4fs,Refine(SQfp16)"]


def test_flat_when_no_candidate_reaches_the_target(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_auto, "FLAT_ROWS", 3000)
    monkeypatch.setattr(faiss_auto, "CANDIDATES", ("PQ{m}x4fs",))
    choice = choose_index(vectors, QUERIES, 0.99)
    assert (choice.factory, choice.parameters) == ("Flat", {})
    assert [p["factory"] for p in choice.front] == ["PQ8x4fs"]


def test_every_combination_of_the_grid_is_measured(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_auto, "GRID", {"nprobe": (1, 16), "k_factor": (1, 8)})
    index = build_index("IVF16,PQ8x4fs,RFlat", vectors, 13)
    points = measure(index, "x", make_probe(vectors, QUERIES), build_seconds=1.5)
    recalls = {(p["parameters"]["nprobe"], p["parameters"]["k_factor"]): p["recall"] for p in points}
    assert set(recalls) == {(1, 1), (1, 8), (16, 1), (16, 8)}
    assert recalls[1, 1] < recalls[1, 8] < recalls[16, 8] and recalls[16, 1] < recalls[16, 8]
    assert {p["build_seconds"] for p in points} == {1.5}


def test_many_queries_are_thinned_evenly_and_counted(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_auto, "MEASURED_QUERIES", 25)
    probe = make_probe(vectors, QUERIES)
    np.testing.assert_array_equal(probe.queries, QUERIES[::3])
    assert probe.exact.shape == (20, 10)
    assert measure(build_index("Flat", vectors, 13), "Flat", probe, 0.0)[0]["queries"] == 20


def test_the_fastest_that_reaches_the_target_is_picked() -> None:
    points = [point("exact", 1.0, 10), point("good", 0.96, 50), point("fast", 0.8, 90), point("worse", 0.95, 40)]
    assert pick(points, 0.95).factory == "good"
    assert pick(points, 0.97).factory == "exact"
    assert pick(points[2:], 0.97).factory == "worse"
    assert [p["factory"] for p in pick(points, 0.95).front] == ["fast", "good", "exact"]


FIGURES = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=12)


@given(figures=FIGURES)
def test_the_front_holds_exactly_what_nothing_beats(figures: list[tuple[int, int]]) -> None:
    front = {(p["recall"], p["queries_per_second"]) for p in pick([point("x", *f) for f in figures], 0.5).front}
    unbeaten = {f for f in figures if not any(g != f and g[0] >= f[0] and g[1] >= f[1] for g in figures)}
    assert front == unbeaten
