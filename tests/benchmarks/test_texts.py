import json
from pathlib import Path

import pytest

from benchmarks.texts import hand_over, sample_passages, sample_queries
from tests.stand_ins import write_tiny_data


def test_a_sample_is_the_same_each_time_and_of_the_data(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path / "data")
    passages = sample_passages(data, 10)
    assert passages == sample_passages(data, 10)
    assert len({*passages}) == 10 and all(len(text.split()) == 12 for text in passages)
    assert all(len(text.split()) == 4 for text in sample_queries(data, 5))
    assert json.loads(Path(hand_over(tmp_path, "texts", passages)).read_text()) == passages


def test_more_texts_than_there_are_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="61 texts asked for, but the data has 60"):
        sample_passages(write_tiny_data(tmp_path / "data"), 61)
