import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.lexical import K1, B, LexicalIndex, build_lexical, open_lexical, words, write_lexical
from retriever.errors import CorruptError
from retriever.protocols import FloatArray
from tests.stand_ins import tiny_store, write_tiny_data

WORDS = st.lists(st.sampled_from("ab cd ef gh ij kl".split()), max_size=8).map(" ".join)


def by_the_formula(texts: list[str], query: str) -> FloatArray:
    """BM25 in float64 from its formula, with Lucene's idf."""
    split = [words(text) for text in texts]
    mean = np.mean([len(one) for one in split])
    scores = np.zeros(len(texts))
    for word in words(query):
        found = sum(word in one for one in split)
        idf = np.log(1 + (len(texts) - found + 0.5) / (found + 0.5))
        for row, one in enumerate(split):
            frequency = one.count(word)
            scores[row] += idf * frequency / (frequency + K1 * (1 - B + B * len(one) / mean)) if frequency else 0
    return scores.astype(np.float32)


def test_words_are_lower_case_runs_of_any_script() -> None:
    assert words("Über_x, naïve-3 日本") == ["über_x", "naïve", "3", "日本"]


@given(st.lists(WORDS, min_size=2, max_size=12).filter(any), WORDS, st.integers(1, 15), st.data())
def test_hits_are_those_of_the_formula(texts: list[str], query: str, depth: int, data: st.DataObject) -> None:
    allowed = np.array([data.draw(st.booleans()) for _ in texts])
    index, expected = build_lexical(texts), by_the_formula(texts, f"{query} unknown")
    np.testing.assert_allclose(index.scores(f"{query} unknown"), expected, rtol=1e-4, atol=1e-6)
    for mask in (None, allowed):
        (rows,), (scores,) = index.search([f"{query} unknown"], depth, mask)
        left = np.where(mask if mask is not None else True, expected, 0)
        best = np.sort(left[left > 0])[::-1][:depth]
        kept = rows >= 0
        assert kept.sum() == len(best) and not kept[len(best) :].any() and np.isneginf(scores[~kept]).all()
        np.testing.assert_allclose(scores[kept], best, rtol=1e-4)
        np.testing.assert_allclose(left[rows[kept]], best, rtol=1e-4)


def test_equal_scores_come_in_the_order_of_rows() -> None:
    rows, _ = build_lexical(["a b", "c", "a d", "a e"]).search(["a"], 4)
    assert rows.tolist() == [[0, 2, 3, -1]]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    _, corpus = tiny_store(tmp_path / "store", write_tiny_data(tmp_path / "data"))
    write_lexical(corpus, tmp_path / "lexical", tmp_path / "absent")
    write_lexical(corpus, tmp_path / "linked", tmp_path / "lexical")
    return tmp_path


def test_an_index_is_written_linked_and_mapped(written: Path) -> None:
    assert open_lexical(written / "absent", 60) is None
    found = []
    for name in ("lexical", "linked"):
        opened = open_lexical(written / name, 60)
        assert isinstance(opened, LexicalIndex) and opened.rows == 60
        found.append(opened.search(["baka beki"], 5)[0].tolist())
    assert found[0] == found[1]
    files = [path.name for path in (written / "lexical").iterdir()]
    assert all((written / "linked" / name).samefile(written / "lexical" / name) for name in files)


def test_a_torn_index_and_one_of_other_rows_are_corrupt(written: Path) -> None:
    with pytest.raises(CorruptError, match="60 passages where 59"):
        open_lexical(written / "lexical", 59)
    shutil.copytree(written / "lexical", written / "torn")
    (written / "torn" / "vocab.index.json").write_text("{")
    with pytest.raises(CorruptError, match="torn: unreadable"):
        open_lexical(written / "torn", 60)
