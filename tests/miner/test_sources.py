import numpy as np
import pytest

from miner.sources import ann_candidates
from retriever.errors import InputError
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
