from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.searching import dense
from indexer.exact import exact_search
from indexer.faiss_index import build_index
from indexer.searcher import IndexSearcher
from tests.indexer.planted import plant_vectors, unit_rows


def test_a_filter_that_takes_all_that_is_near_is_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.searching.EXACT_ROWS", 0)
    vectors, queries = plant_vectors(tmp_path, unit_rows(400, 8)), unit_rows(3, 8, seed=1)
    searcher = IndexSearcher(build_index("IVF16,Flat", vectors, 13), {"nprobe": 1})
    snapshot: Any = SimpleNamespace(corpus=range(400), searcher=searcher, vectors=vectors)
    near = searcher.search(queries[:1], 400)[0]
    allowed = np.ones(400, np.bool_)
    allowed[near[near >= 0]] = False  # all of the list that the first query's search visits
    rows, scores = dense(snapshot, queries, 20, allowed, exact=False)
    expected, expected_scores = exact_search(queries, vectors, 20, allowed)
    np.testing.assert_array_equal(rows[0], expected[0])
    np.testing.assert_allclose(scores[0], expected_scores[0], rtol=1e-6)
    assert (rows >= 0).all() and allowed[rows].all()
