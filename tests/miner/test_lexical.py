from pathlib import Path

import numpy as np
import pytest

import miner.lexical
import miner.remembered
from miner.lexical import lexical_source
from retriever.data import Corpus
from retriever.errors import CorruptError
from tests.stand_ins import tiny_store, write_tiny_data


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    data = write_tiny_data(tmp_path_factory.mktemp("data") / "beir")
    return tiny_store(tmp_path_factory.mktemp("store"), data)[1]


def test_candidates_are_found_once_and_then_read(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(miner.remembered, "BLOCK_QUERIES", 2)
    queries = [corpus.text(row) for row in (5, 7, 9, 11, 13)]
    rows = np.array([4, 0, 3], np.int32)
    found = lexical_source(corpus, queries, 6, tmp_path)(rows)
    assert found.shape == (3, 6) and found.dtype == np.int32
    assert found[:, 0].tolist() == [13, 5, 11], "a text is nearest to itself"
    assert len([*tmp_path.rglob("*.npy")]) == 3

    def no_index(texts: object) -> None:
        raise AssertionError("indexed again")

    monkeypatch.setattr(miner.lexical, "build_lexical", no_index)
    np.testing.assert_array_equal(lexical_source(corpus, queries, 6, tmp_path)(rows), found)
    with pytest.raises(AssertionError, match="indexed again"):
        lexical_source(corpus, queries, 5, tmp_path)(rows)


def test_a_query_that_shares_no_word_has_pads(corpus: Corpus, tmp_path: Path) -> None:
    assert lexical_source(corpus, ["xyz"], 3, tmp_path)(np.array([0], np.int32)).tolist() == [[-1, -1, -1]]


@pytest.mark.parametrize("wrong", [b"torn", None])
def test_a_cache_that_is_torn_is_named(corpus: Corpus, tmp_path: Path, wrong: bytes | None) -> None:
    source, rows = lexical_source(corpus, ["ba"], 3, tmp_path), np.array([0], np.int32)
    source(rows)
    (path,) = tmp_path.rglob("*.npy")
    if wrong is None:
        np.save(path, np.zeros((2, 3), np.int32))
    else:
        path.write_bytes(wrong)
    with pytest.raises(CorruptError, match="remove it, it is a cache"):
        source(rows)
