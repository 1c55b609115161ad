from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import miner.remembered
from miner.remembered import RememberedSource
from retriever.errors import CorruptError
from retriever.protocols import IntArray

TEXTS = ["0", "1", "2", "3", "4"]


def test_only_the_blocks_asked_for_are_searched_and_each_but_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(miner.remembered, "BLOCK_QUERIES", 2)
    searched: list[Sequence[str]] = []

    def search(texts: Sequence[str]) -> IntArray:
        searched.append(texts)
        return np.array([[int(text), -1] for text in texts], np.int32)

    source = RememberedSource(TEXTS, 2, tmp_path / "cache", search)
    assert source(np.array([4, 1], np.int32)).tolist() == [[4, -1], [1, -1]]
    assert searched == [["0", "1"], ["4"]]
    source.fill()
    assert searched == [["0", "1"], ["4"], ["2", "3"]]
    again = RememberedSource(TEXTS, 2, tmp_path / "cache", search)
    assert again(np.arange(5, dtype=np.int32))[:, 0].tolist() == [0, 1, 2, 3, 4] and len(searched) == 3


def test_a_cache_of_another_depth_is_named(tmp_path: Path) -> None:
    RememberedSource(TEXTS, 1, tmp_path, lambda texts: np.zeros((len(texts), 1), np.int32)).fill()
    with pytest.raises(CorruptError, match="remove it, it is a cache"):
        RememberedSource(TEXTS, 2, tmp_path, lambda texts: np.zeros((len(texts), 2), np.int32)).fill()
