import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer import exact
from indexer.exact import exact_search, score_blocks
from retriever.errors import InputError
from retriever.protocols import BoolArray, FloatArray, IntArray
from tests.indexer.planted import plant_vectors, unit_rows


def brute_force(
    queries: FloatArray, matrix: FloatArray, depth: int, allowed: BoolArray
) -> tuple[list[list[int]], list[list[float]]]:
    rows, scores = [], []
    for query in queries.tolist():
        found = [
            (-sum(a * b for a, b in zip(query, vector, strict=True)), row)
            for row, vector in enumerate(matrix.tolist())
            if allowed[row]
        ]
        best = sorted(found)[:depth]
        rows.append([row for _, row in best] + [-1] * (depth - len(best)))
        scores.append([-score for score, _ in best] + [-np.inf] * (depth - len(best)))
    return rows, scores


CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "rows": st.integers(1, 50),
        "queries": st.integers(0, 9),
        "block_rows": st.integers(1, 20),
        "chunk": st.integers(1, 5),
        "depth": st.integers(1, 60),
    }
)


@settings(max_examples=100, deadline=None)
@given(case=CASES, share=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_the_merge_of_blocks_is_the_best_of_all(
    tmp_path_factory: pytest.TempPathFactory, case: dict[str, int], share: float
) -> None:
    rows, queries, depth = case["rows"], case["queries"], case["depth"]
    generator = np.random.default_rng(case["seed"])
    matrix = generator.integers(-2, 3, (rows, 3)).astype(np.float32)  # small integers: exact sums and many ties
    asked = generator.integers(-2, 3, (queries, 3)).astype(np.float32)
    allowed = generator.random(rows) < share if share < 1 else np.ones(rows, bool)
    vectors = plant_vectors(tmp_path_factory.mktemp("shards"), matrix, case["block_rows"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "QUERY_CHUNK", case["chunk"])
        found, scores = exact_search(asked, vectors, depth, None if share == 1 else allowed)
    expected_rows, expected_scores = brute_force(asked, matrix, depth, allowed)
    assert found.dtype == np.int32 and scores.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(expected_rows, np.int32).reshape(queries, depth))
    np.testing.assert_array_equal(scores, np.array(expected_scores, np.float32).reshape(queries, depth))


def test_parity_with_numpy(tmp_path: Path) -> None:
    matrix, queries = unit_rows(3000, 24), unit_rows(700, 24, seed=1)
    rows, scores = exact_search(queries, plant_vectors(tmp_path, matrix, 1000), 20)
    reference = queries.astype(np.float64) @ matrix.T.astype(np.float64)
    order = np.argsort(-reference, axis=1, kind="stable")[:, :20]
    np.testing.assert_allclose(scores, np.take_along_axis(reference, order, axis=1), atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(reference, rows.astype(np.int64), axis=1), scores, atol=1e-6)
    assert (rows == order).mean() > 0.999


def test_every_pair_is_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "QUERY_CHUNK", 3)
    matrix, queries = unit_rows(20, 4), unit_rows(7, 4, seed=1)
    scored = np.full((7, 20), np.nan, np.float32)
    for first_query, first_row, scores in score_blocks(queries, plant_vectors(tmp_path, matrix, 6)):
        part = scored[first_query : first_query + len(scores), first_row : first_row + scores.shape[1]]
        assert np.isnan(part).all()
        part[...] = scores
    np.testing.assert_allclose(scored, queries @ matrix.T, atol=1e-6)


def test_memory_does_not_grow_with_queries_times_corpus(tmp_path: Path) -> None:
    vectors = plant_vectors(tmp_path, unit_rows(20_000, 8), 4096)
    queries = unit_rows(2000, 8, seed=1)
    tracemalloc.start()
    try:
        exact_search(queries, vectors, 10)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2000 * 20_000 * 4 / 4


@pytest.mark.parametrize(
    ("queries", "depth", "message"),
    [
        (unit_rows(2, 5), 3, r"\(2, 5\) where \[n, 4\]"),
        (np.full((1, 4), np.nan, np.float32), 3, "not finite"),
        (unit_rows(2, 4), 0, "depth 0"),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, queries: FloatArray, depth: int, message: str) -> None:
    vectors = plant_vectors(tmp_path, unit_rows(6, 4))
    with pytest.raises(InputError, match=message):
        exact_search(queries, vectors, depth)


def test_of_equal_texts_the_lower_row_comes_first_across_blocks(tmp_path: Path) -> None:
    same = np.tile(np.array([[1, 0, 0]], np.float32), (30, 1))
    rows: IntArray = exact_search(same[:1], plant_vectors(tmp_path, same, 4), 7)[0]
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
