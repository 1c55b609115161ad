from pathlib import Path

import pytest

from benchmarks.train import distinct
from retriever.beir import read_passages
from tests.stand_ins import write_tiny_data


def test_no_text_comes_twice_in_a_batch(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data")
    passages = [(name, title, text) for _, name, title, text in read_passages(data)]
    found = distinct(data, passages, 4, 30)
    assert len(found) == 120  # more than there are training queries
    for first in range(0, 120, 4):
        texts = [text for query, *rows in found[first : first + 4] for text in (query, *(passages[r][2] for r in rows))]
        assert len({*texts}) == 12


def test_data_that_fill_no_batch_are_refused(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data")
    passages = [(name, title, text) for _, name, title, text in read_passages(data)]
    with pytest.raises(ValueError, match="triplets without a text in common, but a batch takes 64"):
        distinct(data, passages, 64, 1)
