import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import miner.lexical
from miner.lexical import LexicalIndex, LexicalSource, words
from retriever.data import Corpus
from retriever.errors import CorruptError
from tests.stand_ins import tiny_store, write_tiny_data

TEXTS = ["the red fox", "the quick red red fox jumps", "a lazy dog", "C", "", "dog, dog: DOG and the fox's"]


def bm25_by_hand(texts: Sequence[str], query: str) -> list[float]:
    """Lucene's BM25 in plain Python: Σ idf · tf / (tf + k1·(1 − b + b·length / mean length))."""
    split = [text.lower().replace(",", " ").replace(":", " ").replace("'", " ").split() for text in texts]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for own in split:
        counts, score = Counter(own), 0.0
        for word in query.lower().split():
            having = sum(word in other for other in split)
            if counts[word]:
                idf = math.log(1 + (len(split) - having + 0.5) / (having + 0.5))
                score += idf * counts[word] / (counts[word] + 0.9 * (1 - 0.4 + 0.4 * len(own) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["red fox", "the dog", "c", "fox fox", "nothing of it", ""])
def test_scores_are_those_of_the_formula(query: str) -> None:
    index = LexicalIndex(TEXTS)
    expected = bm25_by_hand(TEXTS, query)
    np.testing.assert_allclose(index.scores(query), expected, rtol=1e-5)
    order = sorted((row for row, score in enumerate(expected) if score > 0), key=lambda row: (-expected[row], row))
    for depth in (1, 2, 6, 9):
        assert index.best(query, depth).tolist() == order[:depth]


def test_texts_that_score_alike_come_in_their_order() -> None:
    assert LexicalIndex(["b a", "a b", "c", "a b"]).best("a", 2).tolist() == [0, 1]


def test_words_are_lower_case_runs_of_letters_and_digits() -> None:
    assert words("C++ and Straße, 3.11: foo_bar!") == ["c", "and", "straße", "3", "11", "foo_bar"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    data = write_tiny_data(tmp_path_factory.mktemp("data") / "beir")
    return tiny_store(tmp_path_factory.mktemp("store"), data)[1]


def test_candidates_are_found_once_and_then_read(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(miner.lexical, "BLOCK_QUERIES", 2)
    queries = [corpus.text(row) for row in (5, 7, 9, 11, 13)]
    rows = np.array([4, 0, 3], np.int32)
    found = LexicalSource(corpus, queries, 6, tmp_path)(rows)
    assert found.shape == (3, 6) and found.dtype == np.int32
    assert found[:, 0].tolist() == [13, 5, 11], "a text is nearest to itself"
    assert len([*tmp_path.rglob("*.npy")]) == 3

    def no_index(texts: object) -> None:
        raise AssertionError("indexed again")

    monkeypatch.setattr(miner.lexical, "LexicalIndex", no_index)
    np.testing.assert_array_equal(LexicalSource(corpus, queries, 6, tmp_path)(rows), found)
    with pytest.raises(AssertionError, match="indexed again"):
        LexicalSource(corpus, queries, 5, tmp_path)(rows)


def test_a_query_that_shares_no_word_has_pads(corpus: Corpus, tmp_path: Path) -> None:
    assert LexicalSource(corpus, ["xyz"], 3, tmp_path)(np.array([0], np.int32)).tolist() == [[-1, -1, -1]]


@pytest.mark.parametrize("wrong", [b"torn", None])
def test_a_cache_that_is_torn_is_named(corpus: Corpus, tmp_path: Path, wrong: bytes | None) -> None:
    source, rows = LexicalSource(corpus, ["ba"], 3, tmp_path), np.array([0], np.int32)
    source(rows)
    (path,) = tmp_path.rglob("*.npy")
    if wrong is None:
        np.save(path, np.zeros((2, 3), np.int32))
    else:
        path.write_bytes(wrong)
    with pytest.raises(CorruptError, match="remove it, it is a cache"):
        source(rows)
