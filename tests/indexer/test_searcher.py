from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import indexer.searcher
from indexer.faiss_index import build_index, write_index
from indexer.searcher import IndexSearcher, exact_searcher, open_batch_searcher, open_searcher
from indexer.shards import Vectors
from retriever.artifacts import Artifact
from retriever.errors import CorruptError
from retriever.protocols import BoolArray, FloatArray, IntArray, Searcher
from tests.indexer.planted import plant_vectors, unit_rows

QUERIES = unit_rows(3, 8, seed=1)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    return plant_vectors(tmp_path_factory.mktemp("vectors"), unit_rows(50, 8), block_rows=16)


@pytest.fixture(scope="module")
def searcher(vectors: Vectors) -> IndexSearcher:
    return IndexSearcher(build_index("Flat", vectors, 13), {})


def without(*excluded: int) -> BoolArray:
    allowed = np.ones(50, np.bool_)
    allowed[[*excluded]] = False
    return allowed


@settings(deadline=None)
@given(excluded=st.sets(st.integers(0, 49)), depth=st.integers(1, 60))
def test_filtering_is_what_brute_force_leaves(searcher: IndexSearcher, excluded: set[int], depth: int) -> None:
    rows, scores = searcher.search_allowed(QUERIES, depth, without(*excluded))
    every, every_score = searcher.search(QUERIES, 50)
    for query in range(3):
        left = [(r, s) for r, s in zip(every[query], every_score[query], strict=True) if r not in excluded]
        expected = (left + [(-1, -np.inf)] * depth)[:depth]
        assert list(zip(rows[query], scores[query], strict=True)) == expected


def test_deeper_searches_take_the_parameters_of_their_depth(vectors: Vectors) -> None:
    index = build_index("IVF16,PQ4x4fs,RFlat", vectors, 13)
    deep = {"depth": 40, "parameters": {"nprobe": 16, "k_factor": 1}}
    searcher = IndexSearcher(index, {"nprobe": 4, "k_factor": 4}, deep)
    at = {depth: searcher.parameters_at(depth) for depth in (1, 10, 20, 40, 50)}
    assert at[1] == {"nprobe": 4, "k_factor": 40}, "as many are compared again as at depth 10"
    assert at[10] == {"nprobe": 4, "k_factor": 4} and at[40] == at[50] == {"nprobe": 16, "k_factor": 1}
    assert at[20] == {"nprobe": 8, "k_factor": 2}
    assert (searcher.search(QUERIES, 40)[0] >= 0).all()
    assert IndexSearcher(index, {"nprobe": 4}).parameters_at(50) == {"nprobe": 4}


@pytest.mark.parametrize("depth", [1, 3, 7])
def test_the_first_hits_do_not_depend_on_how_few_are_asked_for(tmp_path: Path, depth: int) -> None:
    many, asking = plant_vectors(tmp_path, unit_rows(3000, 32)), unit_rows(200, 32, seed=1)
    searcher = IndexSearcher(build_index("IVF8,PQ8x4fs,RFlat", many, 13), {"nprobe": 8, "k_factor": 2})
    found, ten = searcher.search(asking, depth)[0], searcher.search(asking, 10)[0]
    np.testing.assert_array_equal(found, ten[:, :depth])


class CountingSearcher(IndexSearcher):
    """Records how many queries each search got, and how deep it went."""

    def __init__(self, vectors: Vectors, factory: str, parameters: dict[str, float]) -> None:
        super().__init__(build_index(factory, vectors, 13), parameters)
        self.calls: list[tuple[int, int]] = []

    def search(self, queries: FloatArray, depth: int) -> tuple[IntArray, FloatArray]:
        self.calls.append((len(queries), depth))
        return super().search(queries, depth)


def test_only_the_queries_that_lack_hits_are_searched_deeper(vectors: Vectors) -> None:
    searcher = CountingSearcher(vectors, "Flat", {})
    best = searcher.search(QUERIES, 50)[0]
    searcher.calls.clear()
    excluded = best[1, :20].tolist()
    rows, _ = searcher.search_allowed(QUERIES, 5, without(*excluded))
    left = [[row for row in found if row not in excluded][:5] for found in best]
    np.testing.assert_array_equal(rows, left)
    assert searcher.calls[0] == (3, 13) and searcher.calls[-1][0] < 3, "1.5 × 5 × 50 / 30, rounded up"
    searcher.calls.clear()
    searcher.search_allowed(QUERIES, 5, without(int(best[0, 0])))
    assert searcher.calls == [(3, 6)], "one more than asked for, where one is excluded"


def test_an_index_that_gives_no_more_ends_the_search(vectors: Vectors) -> None:
    searcher = CountingSearcher(vectors, "IVF8,Flat", {"nprobe": 1})
    reachable = searcher.search(QUERIES, 50)[0]
    reached = np.unique(reachable[reachable >= 0]).tolist()
    rows, scores = searcher.search_allowed(QUERIES, 40, without(*reached))
    assert (rows == -1).all() and np.isneginf(scores).all()
    assert len(searcher.calls) == 2


def test_no_search_goes_deeper_than_it_may(vectors: Vectors) -> None:
    searcher = CountingSearcher(vectors, "Flat", {})
    best = searcher.search(QUERIES[:1], 50)[0]
    searcher.calls.clear()
    rows, _ = searcher.search_allowed(QUERIES[:1], 5, without(*best[0, :30].tolist()), 26)
    assert searcher.calls == [(1, 19)] and (rows == -1).all(), "38 would be next"


def test_nothing_is_excluded_for_no_queries(searcher: IndexSearcher) -> None:
    rows, scores = searcher.search_allowed(QUERIES[:0], 4, without(1))
    assert rows.shape == scores.shape == (0, 4)


def generation(folder: Path, vectors: Vectors, **facts: Any) -> Artifact:
    write_index(build_index("IVF8,Flat", vectors, 13), folder / "index.faiss")
    return Artifact("generations", 3, folder, {"facts": {"rows": 50, "dim": 8, "search": {"nprobe": 8}, **facts}})


def test_a_generation_is_opened_with_its_own_parameters(
    tmp_path: Path, vectors: Vectors, searcher: IndexSearcher
) -> None:
    opened: Searcher = open_searcher(generation(tmp_path, vectors))
    assert opened.rows == 50
    np.testing.assert_array_equal(opened.search(QUERIES, 9)[0], searcher.search(QUERIES, 9)[0])
    narrow = open_searcher(generation(tmp_path, vectors, search={"nprobe": 1}))
    assert not narrow.exact and narrow.parameters == {"nprobe": 1}
    assert (narrow.search(QUERIES, 40)[0] == -1).any()


def test_an_index_of_other_rows_or_dimensions_is_corrupt(tmp_path: Path, vectors: Vectors) -> None:
    for facts in ({"rows": 49}, {"dim": 9}):
        with pytest.raises(CorruptError, match="50 x 8 where"):
            open_searcher(generation(tmp_path, vectors, **facts))


def test_an_exact_searcher_compares_every_vector_of_its_blocks() -> None:
    vectors, queries = unit_rows(50, 8), unit_rows(3, 8, seed=1)
    searcher = exact_searcher(8, (vectors[start : start + 20] for start in range(0, 50, 20)))
    rows, scores = searcher.search(queries, 5)
    assert searcher.exact and searcher.rows == 50
    products = queries @ vectors.T
    np.testing.assert_array_equal(rows, np.argsort(-products, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(scores, np.sort(products, axis=1)[:, ::-1][:, :5], rtol=1e-5)


def test_few_passages_are_searched_exactly_whatever_their_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = unit_rows(200, 8), unit_rows(3, 8, seed=1)
    shards = plant_vectors(tmp_path / "vectors", vectors)
    write_index(build_index("IVF4,SQ8", shards, seed=1), tmp_path / "index.faiss")
    facts = {"rows": 200, "dim": 8, "search": {"nprobe": 1}}
    generation = Artifact("generations", 0, tmp_path, {"facts": facts})
    assert open_batch_searcher(generation).exact
    np.testing.assert_array_equal(
        open_batch_searcher(generation).search(queries, 5)[0],
        np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :5],
    )
    monkeypatch.setattr(indexer.searcher, "EXACT_ROWS", 199)
    monkeypatch.setattr(indexer.searcher, "fits_gpu", lambda rows, dimensions: False)
    assert not open_batch_searcher(generation).exact
