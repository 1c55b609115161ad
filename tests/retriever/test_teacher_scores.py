from pathlib import Path

import numpy as np
import pytest

from retriever.errors import CorruptError
from retriever.negatives import NegativeSet, create_negative_set
from retriever.teacher_scores import FILES, create_teacher_scores, open_teacher_scores


def write_pool(folder: Path) -> NegativeSet:
    """Three queries of four candidates and two positives; pads, and a positive among the candidates."""
    pool = create_negative_set(folder, 3, 4, 2)
    pool.passages[:] = [[5, 6, 7, -1], [9, 5, 8, 4], [6, -1, -1, -1]]
    pool.positives[:] = [[1, -1], [9, 3], [2, -1]]
    pool.flush()
    return pool


def test_a_fresh_set_has_no_scores_and_what_is_written_is_read(tmp_path: Path) -> None:
    pool = write_pool(tmp_path)
    assert open_teacher_scores(tmp_path, pool) is None
    made = create_teacher_scores(tmp_path, pool)
    assert np.isnan(made.candidates).all() and np.isnan(made.positives).all()
    made.candidates[0, 1], made.positives[1, 0] = 2.5, -1.0
    made.flush()
    found = open_teacher_scores(tmp_path, pool)
    assert found is not None and found.candidates[0, 1] == 2.5 and found.positives[1, 0] == -1.0
    assert np.isnan(found.candidates).sum() == 11 and np.isnan(found.positives).sum() == 5


def test_a_batch_has_the_scores_of_all_its_pairs_whichever_query_brought_the_passage(tmp_path: Path) -> None:
    pool = write_pool(tmp_path)
    made = create_teacher_scores(tmp_path, pool)
    made.candidates[:] = np.array([[1, 2, np.nan, 77], [np.nan, 5, 6, 7], [8, 77, 77, 77]])
    made.positives[:] = [[10, 77], [11, 12], [13, 77]]
    queries, passages = np.array([2, 0, 1], np.int32), np.array([9, 2, 6, 1, 5, 7, 40], np.int32)
    nan = np.nan
    wanted = [
        [nan, 13, 8, nan, nan, nan, nan],
        [nan, nan, 2, 10, 1, nan, nan],
        [11, nan, nan, nan, 5, nan, nan],  # 9 stands among its candidates without a score, and among its positives
    ]
    found = made.of_batch(queries, passages)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(wanted, np.float32))


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    pool = write_pool(tmp_path)
    create_teacher_scores(tmp_path, pool)
    np.save(tmp_path / FILES[1], np.zeros((3, 1), np.float32))
    with pytest.raises(CorruptError, match=r"teacher_positives\.npy: float32 \(3, 1\) where float32 \(3, 2\) belongs"):
        open_teacher_scores(tmp_path, pool)
    (tmp_path / FILES[0]).write_bytes(b"\x93NUM")
    with pytest.raises(CorruptError, match=r"teacher\.npy: unreadable"):
        open_teacher_scores(tmp_path, pool)
