from pathlib import Path

import numpy as np
import pytest

from indexer import exact
from indexer.evaluation import evaluate, pooled_auc
from indexer.exact import exact_search
from retriever.data import QuerySet
from retriever.errors import InputError
from retriever.protocols import FloatArray
from tests.indexer.planted import plant_vectors, unit_rows


def query_set(judgements: list[dict[int, int]]) -> QuerySet:
    names = [f"q{i}" for i in range(len(judgements))]
    return QuerySet("dev", names, names, judgements)


def auc_by_pairs(judged: QuerySet, queries: FloatArray, matrix: FloatArray) -> float:
    scores = queries @ matrix.T
    relevant = np.array([[judged.judgements[q].get(row, 0) > 0 for row in range(len(matrix))] for q in range(len(judged))])
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
        "AUC": pytest.approx((6 + 6 - 1 - 0.5) / 12 + 0.5 / 12 - 0.5 / 12),
    }
    assert found.per_query["RR@10"].tolist() == [1, 0.5]
