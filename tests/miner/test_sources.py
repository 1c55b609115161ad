import numpy as np
import pytest

import miner.sources
from miner.sources import ann_candidates, exact_scores
from retriever.errors import InputError
from retriever.protocols import FloatArray
from tests.miner.searchers import BruteForce


def test_the_nearest_come_first() -> None:
    searcher = BruteForce(np.eye(4, dtype=np.float32))
    rows, scores = ann_candidates(searcher, np.array([[0.1, 0.9, 0.5, 0.0]], np.float32), 3)
    assert rows.tolist() == [[1, 2, 0]]
    np.testing.assert_allclose(scores, [[0.9, 0.5, 0.1]])


def test_a_pad_of_the_index_keeps_no_infinite_score() -> None:
    searcher = BruteForce(np.eye(4, dtype=np.float32), missing=2)
    rows, scores = ann_candidates(searcher, np.eye(4, dtype=np.float32)[:1], 4)
    assert rows.tolist() == [[0, 1, -1, -1]]
    assert scores.tolist() == [[1, 0, 0, 0]]


def test_a_depth_beyond_the_corpus_is_refused() -> None:
    searcher = BruteForce(np.eye(4, dtype=np.float32))
    with pytest.raises(InputError, match=r"depth = 5 is larger than the corpus \(4 passages\)"):
        ann_candidates(searcher, np.eye(4, dtype=np.float32), 5)


def test_vectors_are_gathered_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(1).standard_normal((9, 4)).astype(np.float32)
    asked: list[int] = []

    def gather(rows: np.ndarray) -> FloatArray:
        asked.append(len(rows))
        found: FloatArray = vectors[rows]
        return found

    monkeypatch.setattr(miner.sources, "CHUNK_PAIRS", 3)
    positives = np.array([[0, 1, 2], [3, -1, -1], [4, 5, -1], [-1, -1, -1]], np.int32)
    scores = exact_scores(vectors[:4], positives, gather)
    assert asked == [3, 3]
    expected = np.where(positives >= 0, np.einsum("qd,qpd->qp", vectors[:4], vectors[positives]), 0)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
