from pathlib import Path

import numpy as np
import pytest

from indexer import exact
from indexer.evaluation import evaluate, pooled_pairs
from indexer.exact import exact_search
from retriever.data import QuerySet
from retriever.errors import InputError
from retriever.protocols import FloatArray, IntArray
from tests.indexer.planted import plant_vectors, unit_rows


def query_set(judgements: list[dict[int, int]]) -> QuerySet:
    names = [f"q{i}" for i in range(len(judgements))]
    return QuerySet("dev", names, names, judgements)


def auc_by_pairs(judged: QuerySet, queries: FloatArray, matrix: FloatArray) -> float:
    scores = queries @ matrix.T
    relevant = np.array(
        [[judged.judgements[q].get(row, 0) > 0 for row in range(len(matrix))] for q in range(len(judged))]
    )
    wins = [float(p > n) + float(p == n) / 2 for p in scores[relevant] for n in scores[~relevant]]
    return sum(wins) / len(wins)


def test_figures_of_a_run_that_can_be_checked_by_eye(tmp_path: Path) -> None:
    vectors = plant_vectors(tmp_path, np.eye(4, dtype=np.float32), block_rows=3)
    queries = np.array([[4, 3, 2, 1], [1, 2, 3, 4]], np.float32)
    found = evaluate(query_set([{0: 1}, {2: 1, 0: 0}]), queries, vectors, lambda q, k: exact_search(q, vectors, k))
    assert found.hits[:, :5].tolist() == [[0, 1, 2, 3, -1], [3, 2, 1, 0, -1]]
    assert found.hits.shape == found.scores.shape == (2, 100)
    assert found.metrics == {
        "nDCG@10": pytest.approx((1 + 1 / np.log2(3)) / 2),
        "RR@10": 0.75,
        "R@100": 1,
        "AUC": pytest.approx((5.5 + 4.5) / 12),
        # 4 and 3 against 3, 2, 1, 1, 2, 4: means 7/2 and 13/6, squared deviations 1/2 and 41/6
        "separation": pytest.approx((7 / 2 - 13 / 6) / np.sqrt((1 / 2 + 41 / 6) / 6)),
    }
    assert found.per_query["RR@10"].tolist() == [1, 0.5]


@pytest.mark.parametrize("chunk", [1, 4, 512])
def test_auc_over_blocks_is_auc_over_all_pairs_with_ties(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(exact, "QUERY_CHUNK", chunk)
    generator = np.random.default_rng(3)
    matrix = generator.integers(-2, 3, (37, 4)).astype(np.float32)
    queries = generator.integers(-2, 3, (9, 4)).astype(np.float32)
    judged = query_set([{row: int(generator.integers(0, 3)) for row in range(q, 37, 5)} for q in range(9)])
    vectors = plant_vectors(tmp_path, matrix, block_rows=8)
    assert pooled_pairs(judged, queries, vectors).value() == pytest.approx(auc_by_pairs(judged, queries, matrix))


def test_a_duplicate_of_the_positive_ties_to_the_last_bit(tmp_path: Path) -> None:
    matrix = unit_rows(64, 48)
    matrix[40] = matrix[3]
    vectors = plant_vectors(tmp_path, matrix[[3, 40]], block_rows=1)
    assert pooled_pairs(query_set([{0: 1}]), unit_rows(1, 48, seed=1), vectors).value() == 0.5


def test_auc_is_left_out_where_it_is_not_asked_for_or_not_defined(tmp_path: Path) -> None:
    matrix = unit_rows(3, 4)
    vectors = plant_vectors(tmp_path, matrix)

    def search(queries: FloatArray, depth: int) -> tuple[IntArray, FloatArray]:
        return exact_search(queries, vectors, depth)

    some, every = query_set([{0: 1}]), query_set([{0: 1, 1: 1, 2: 2}])
    assert "AUC" in evaluate(some, matrix[:1], vectors, search).metrics
    assert "AUC" not in evaluate(some, matrix[:1], vectors, search, auc=False).metrics
    assert "AUC" not in evaluate(every, matrix[:1], vectors, search).metrics


def test_the_search_is_as_deep_as_the_deepest_measure(tmp_path: Path) -> None:
    vectors, depths = plant_vectors(tmp_path, unit_rows(5, 4)), list[int]()

    def search(queries: FloatArray, depth: int) -> tuple[IntArray, FloatArray]:
        depths.append(depth)
        return exact_search(queries, vectors, depth)

    for names in (["RR@10"], ["nDCG@3", "R@50"], ["AP"]):
        evaluate(query_set([{0: 1}]), unit_rows(1, 4), vectors, search, names)
    assert depths == [10, 50, 1000]
    with pytest.raises(InputError, match="MRR@10"):
        evaluate(query_set([{0: 1}]), unit_rows(1, 4), vectors, search, ["MRR@10"])
