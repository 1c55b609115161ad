import numpy as np
import pytest

from retriever.examples import Batch
from retriever.protocols import Negatives
from retriever.source_tally import SourceTally, brought, several_sources

ANN, BM25 = 1, 8


def drawn(rows: list[list[int]], sources: list[list[int]] | None) -> Negatives:
    array = np.array(rows, np.int32)
    bits = None if sources is None else np.array(sources, np.uint8)
    return Negatives(array, np.zeros(array.shape, np.float32), array >= 0, bits)


def batch() -> Batch:
    """Two queries over rows 9, 4, 7, 2, 5: their positives are 9 and 4; row 5 is known of the second."""
    hard = np.array([[0, 0, 1, 1, 0], [0, 0, 1, 0, 0]], np.bool_)
    rows = np.array([9, 4, 7, 2, 5], np.int32)
    return Batch(np.array([0, 1], np.int32), rows, np.array([0, 1]), np.ones((2, 5), np.bool_), hard)


def test_only_a_set_of_several_sources_is_told_apart() -> None:
    assert several_sources({"sources": {"ann": 1, "bm25": 8}}) == {"ann": 1, "bm25": 8}
    assert several_sources({"sources": {"ann": 1}}) == several_sources({}) == {}


def test_each_drawn_negative_has_the_bits_of_those_that_brought_it_to_its_query() -> None:
    found = brought(batch(), drawn([[7, 2, -1], [5, 7, -1]], [[ANN, ANN | BM25, 0], [BM25, BM25, 0]]))
    assert found.tolist() == [[0, 0, ANN, ANN | BM25, 0], [0, 0, BM25, 0, 0]], "row 5 is no negative after all"
    assert not brought(batch(), drawn([[7, 2], [5, 7]], None)).any()


def test_a_source_has_the_negatives_that_it_brought_and_its_share_of_the_gradient() -> None:
    tally = SourceTally({"ann": ANN, "bm25": BM25, "momentum": 4})
    bits = np.array([ANN, ANN | BM25, BM25], np.uint8)
    tally.add(bits[:2], np.array([-0.5, 1.0], np.float32), np.array([0.25, 0.75], np.float32))
    tally.add(bits[2:], np.array([0.5], np.float32), np.array([-0.25], np.float32))
    assert tally.facts() == {
        "ann": {"drawn": 2, "gradient": 0.75, "score": 0.5},
        "bm25": {"drawn": 2, "gradient": 0.75, "score": 0.25},
        "momentum": {"drawn": 0, "gradient": 0.0, "score": None},
    }
    tally.gather(lambda value: 2 * value)
    assert tally.facts()["ann"]["drawn"] == 4 and tally.facts()["ann"]["gradient"] == 0.75


def test_of_nothing_there_is_no_share_and_without_scores_no_mean() -> None:
    tally = SourceTally({"ann": ANN, "bm25": BM25})
    assert tally.facts() == {name: {"drawn": 0, "gradient": None} for name in ("ann", "bm25")}
    tally.add(np.array([ANN, BM25], np.uint8), np.array([0.1, 0.3], np.float32))
    assert tally.facts()["bm25"] == {"drawn": 1, "gradient": pytest.approx(0.75)}
