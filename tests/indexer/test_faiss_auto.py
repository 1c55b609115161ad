import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer import faiss_auto
from indexer.exact import exact_search
from indexer.faiss_auto import Choice, Probes, choose_index, fitting, make_probe, pick, tune, tune_deep
from indexer.faiss_index import build_index, bytes_in_memory, search_index
from indexer.quality import recall_at
from indexer.shards import Vectors
from indexer.tuning import Point
from retriever.errors import InputError
from tests.indexer.planted import plant_vectors, unit_rows

QUERIES = unit_rows(60, 16, seed=1)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    return plant_vectors(tmp_path_factory.mktemp("vectors"), unit_rows(3000, 16), block_rows=1024)


@pytest.fixture(scope="module")
def probes(vectors: Vectors) -> Probes:
    return make_probe(vectors, QUERIES), make_probe(vectors, QUERIES, 50)


def point(name: str, recall: float, speed: float) -> Point:
    return {"factory": name, "parameters": {}, "recall": recall, "queries_per_second": speed}


def test_a_small_corpus_is_flat_and_unmeasured(vectors: Vectors, probes: Probes) -> None:
    index, choice = choose_index(vectors, probes, 0.95)
    assert choice == Choice("Flat", {}, (), None) and index.ntotal == 3000


def test_a_large_corpus_gets_what_was_measured_to_reach_the_target(
    vectors: Vectors, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_auto, "FLAT_ROWS", 3000)
    index, choice = choose_index(vectors, probes, 0.9)
    chosen = next(p for p in choice.front if (p["factory"], p["parameters"]) == (choice.factory, choice.parameters))
    assert chosen["recall"] >= 0.9 and chosen["queries_per_second"] > 0 and chosen["bytes"] == bytes_in_memory(index)
    assert all(p["recall"] < 0.9 for p in choice.front if p["queries_per_second"] > chosen["queries_per_second"])
    rows, _ = search_index(build_index(choice.factory, vectors, 13), QUERIES, 10, choice.parameters)
    assert recall_at(rows, exact_search(QUERIES, vectors, 10)[0], 10) == chosen["recall"]
    assert choice.deep is not None and choice.deep["depth"] == 50
    deep_rows, _ = search_index(index, QUERIES, 50, choice.deep["parameters"])
    assert recall_at(deep_rows, exact_search(QUERIES, vectors, 50)[0], 50) == choice.deep["recall"] >= 0.9


def test_a_small_corpus_with_little_memory_is_compressed(vectors: Vectors, probes: Probes) -> None:
    index, choice = choose_index(vectors, probes, 0.9, most_bytes=170_000)
    assert choice.factory != "Flat" and bytes_in_memory(index) <= 170_000


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (math.inf, ["Flat", "IVF64,PQ4x4fs,Refine(SQfp16)", "IVF64,PQ2x4fs,Refine(SQfp16)"]),
        (195_000, ["Flat", "IVF64,PQ4x4fs,Refine(SQfp16)", "IVF64,PQ2x4fs,Refine(SQfp16)"]),
        (135_000, ["IVF64,PQ4x4fs,Refine(SQfp16)", "IVF64,PQ2x4fs,Refine(SQfp16)"]),
        (100_000, ["IVF64,PQ4x4fs,Refine(SQ8)", "IVF64,PQ2x4fs,Refine(SQ8)"]),
        (82_000, ["IVF64,PQ4x4fs", "IVF64,PQ2x4fs,Refine(SQ8)"]),
        (35_000, ["IVF64,PQ2x4fs"]),
    ],
)
def test_each_candidate_is_the_finest_that_fits(limit: float, expected: list[str]) -> None:
    assert fitting(3000, 16, limit) == expected


def test_no_candidate_exceeds_the_memory_limit(vectors: Vectors) -> None:
    for limit in (195_000, 135_000, 100_000):
        for factory in fitting(3000, 16, limit):
            assert bytes_in_memory(build_index(factory, vectors, 13)) <= 1.03 * limit


def test_too_little_memory_for_anything_names_the_key_and_the_least_that_would_do() -> None:
    with pytest.raises(InputError, match=r"max_memory_mb = 10 .* 1000000 passages .* IVF\d+,PQ\S+, takes \d+$"):
        fitting(1_000_000, 384, 10e6)


def test_no_candidate_needs_more_rows_than_there_are() -> None:
    assert fitting(10, 16, math.inf) == ["Flat"]
    assert fitting(1, 16, math.inf) == ["Flat"]


def test_flat_when_no_candidate_reaches_the_target(
    vectors: Vectors, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_auto, "FLAT_ROWS", 3000)
    monkeypatch.setattr(faiss_auto, "CANDIDATES", ("PQ{m}x4fs",))
    monkeypatch.setattr(faiss_auto, "CODES_PER_DIMENSION", (0.5,))
    _, choice = choose_index(vectors, probes, 0.99)
    assert (choice.factory, choice.parameters, choice.deep) == ("Flat", {}, None)
    assert {p["factory"] for p in choice.front} == {"PQ8x4fs"}
    _, limited = choose_index(vectors, probes, 0.99, most_bytes=100_000)
    assert limited.factory == "PQ8x4fs" and limited.front[-1]["recall"] < 0.99


def test_what_is_measured_crosses_the_target(vectors: Vectors, probes: Probes) -> None:
    points = tune(build_index("IVF16,PQ8x4fs,RFlat", vectors, 13), probes[0], 0.9)
    recalls = [p["recall"] for p in points]
    assert min(recalls) < 0.9 <= max(recalls) and len(points) < 30
    assert {tuple(p["parameters"]) for p in points} == {("nprobe", "k_factor")}


def test_deep_searches_get_parameters_of_their_own(vectors: Vectors, probes: Probes) -> None:
    index = build_index("IVF64,Flat", vectors, 13)
    deep = tune_deep(index, probes[1], 0.9)
    shallow, _ = pick(tune(index, probes[0], 0.9), 0.9)
    assert deep is not None and deep["recall"] >= 0.9 and deep["depth"] == 50
    assert deep["parameters"]["nprobe"] > shallow["parameters"]["nprobe"]
    assert tune_deep(build_index("Flat", vectors, 13), probes[1], 0.9) is None
    assert tune_deep(index, None, 0.9) is None


def test_many_queries_are_thinned_evenly_and_counted(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_auto, "MEASURED_QUERIES", 25)
    monkeypatch.setattr(faiss_auto, "DEEP_QUERIES", 6)
    probe = make_probe(vectors, QUERIES)
    np.testing.assert_array_equal(probe.queries, QUERIES[::3])
    assert probe.exact.rows.shape == (20, 11) and make_probe(vectors, QUERIES, 30).exact.rows.shape == (6, 31)
    assert tune(build_index("Flat", vectors, 13), probe, 0.9)[0]["queries"] == 20


def test_the_fastest_that_reaches_the_target_is_picked() -> None:
    points = [point("exact", 1.0, 10), point("good", 0.96, 50), point("fast", 0.8, 90), point("worse", 0.95, 40)]
    assert pick(points, 0.95)[0]["factory"] == "good"
    assert pick(points, 0.97)[0]["factory"] == "exact"
    assert pick(points[2:], 0.97)[0]["factory"] == "worse"
    assert [p["factory"] for p in pick(points, 0.95)[1]] == ["fast", "good", "exact"]


FIGURES = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=12)


@given(figures=FIGURES)
def test_the_front_holds_exactly_what_nothing_beats(figures: list[tuple[int, int]]) -> None:
    front = {(p["recall"], p["queries_per_second"]) for p in pick([point("x", *f) for f in figures], 0.5)[1]}
    unbeaten = {f for f in figures if not any(g != f and g[0] >= f[0] and g[1] >= f[1] for g in figures)}
    assert front == unbeaten
