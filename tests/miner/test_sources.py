from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import miner.sources
from miner.sources import Asked, OpenGeneration, ann_candidates, exact_scores, find, union
from retriever.errors import InputError
from retriever.negatives import Verdict, create_negative_set
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


def generation(vectors: FloatArray, **before: Any) -> OpenGeneration:
    """Open a generation of passage ``vectors`` that is never asked to encode."""

    def encode(texts: Sequence[str]) -> FloatArray:
        raise AssertionError("no query is encoded here")

    return OpenGeneration(1, encode, BruteForce(vectors), lambda rows: vectors[rows], **before)


def random_vectors(rows: int, seed: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((rows, 4)).astype(np.float32)


def asked(queries: FloatArray, passages: FloatArray, positives: Sequence[Sequence[int]]) -> Asked:
    """Ask for ``queries`` in their order, their positives scored."""
    rows = np.array(positives, np.int32)
    scores = exact_scores(queries, rows, lambda wanted: passages[wanted])
    return Asked(np.arange(len(queries), dtype=np.int32), queries, rows, scores)


ROWS = st.lists(st.integers(-1, 6), min_size=3, max_size=3)


@given(st.lists(st.tuples(ROWS, ROWS, ROWS), min_size=1, max_size=4))
def test_a_union_has_each_row_once_with_the_bits_of_all_its_sources(lines: list[tuple[list[int], ...]]) -> None:
    bits = [1, 2, 8]
    rows, sources = union([np.array([line[source] for line in lines], np.int32) for source in range(3)], bits)
    assert rows.shape == sources.shape == (len(lines), 9)
    assert rows.dtype == np.int32 and sources.dtype == np.uint8
    for line, row, source in zip(lines, rows.tolist(), sources.tolist(), strict=True):
        expected: dict[int, int] = {}
        for found, bit in zip(line, bits, strict=True):
            for one in found:
                if one >= 0:
                    expected[one] = expected.get(one, 0) | bit
        assert dict(zip(row[: len(expected)], source[: len(expected)], strict=True)) == expected
        assert set(row[len(expected) :]) <= {-1} and not any(source[len(expected) :])


def test_candidates_of_several_sources_are_scored_alike_and_come_best_first() -> None:
    passages, queries = random_vectors(20, 1), random_vectors(3, 2)
    lexical = np.array([[0, 19, -1], [3, 4, 5], [-1, -1, -1]], np.int32)
    opened = generation(passages, lexical=lambda rows: lexical[rows])
    found = find(asked(queries, passages, [[1], [2], [3]]), opened, ["ann", "bm25"], 3)
    scores = (queries.astype(np.float64) @ passages.T.astype(np.float64)).tolist()
    for query in range(3):
        nearest = sorted(range(20), key=lambda row: -scores[query][row])[:3]
        shared = [row for row in lexical[query].tolist() if row >= 0]
        expected = sorted({*nearest, *shared}, key=lambda row: -scores[query][row])
        count = len(expected)
        assert found.rows[query].tolist() == [*expected, *[-1] * (6 - count)]
        np.testing.assert_allclose(
            found.scores[query], [*(scores[query][row] for row in expected), *[0] * (6 - count)], rtol=1e-5
        )
        assert found.sources[query, :count].tolist() == [(row in nearest) + 8 * (row in shared) for row in expected]


def test_lookahead_searches_from_the_positive_that_scores_best() -> None:
    """ANCE-Tele's lookahead: what lies near the place that the query is pulled to."""
    passages = np.eye(6, 4, dtype=np.float32)
    passages[4], passages[5] = [0.1, 0.9, 0, 0], [0, 0, 0.9, 0.1]
    query = np.array([[0.5, 0.4, 0.3, 0]], np.float32)
    found = find(asked(query, passages, [[1, 2]]), generation(passages), ["lookahead"], 2)
    assert sorted(found.rows[0].tolist()) == [1, 4], "row 1 scores .4, row 2 .3"
    assert found.sources.tolist() == [[2, 2]]
    nobody = find(asked(query, passages, [[-1, -1]]), generation(passages), ["lookahead"], 2)
    assert nobody.rows.tolist() == [[-1, -1]] and not nobody.sources.any()


def test_momentum_brings_back_what_could_be_drawn_from_the_set_before(tmp_path: Path) -> None:
    last = create_negative_set(tmp_path, queries=2, depth=4, positives=1)
    last.passages[:] = [[7, 8, 9, 10], [3, -1, -1, -1]]
    last.verdicts[:] = [
        [Verdict.POSITIVE, Verdict.ELIGIBLE, Verdict.JUDGED_IRRELEVANT, Verdict.ELIGIBLE],
        [Verdict.FILTERED, *[Verdict.ELIGIBLE] * 3],
    ]
    passages, queries = random_vectors(12, 1), random_vectors(2, 2)
    found = find(asked(queries, passages, [[7], [0]]), generation(passages, last=last), ["momentum"], 2)
    assert sorted(found.rows[0].tolist()) == [8, 9] and found.rows[1].tolist() == [-1, -1]
    assert found.sources.tolist() == [[4, 4], [0, 0]]
    first = find(asked(queries, passages, [[7], [0]]), generation(passages), ["momentum", "ann"], 2)
    assert (first.rows >= 0).sum() == 4 and set(first.sources[first.rows >= 0].tolist()) == {1}


def test_pools_are_scored_anew_and_nothing_is_searched(tmp_path: Path) -> None:
    pools = create_negative_set(tmp_path, queries=2, depth=4, positives=1)
    pools.passages[:] = [[7, 8, 9, 10], [3, 1, -1, -1]]
    pools.sources[:] = [[1, 2, 3, 8], [4, 5, 0, 0]]
    pools.verdicts[:] = Verdict.FILTERED  # whatever they were: they are judged anew
    passages, queries = random_vectors(12, 1), random_vectors(2, 2)
    opened = generation(passages, pools=pools)
    searcher = opened.searcher
    assert isinstance(searcher, BruteForce)
    searcher.vectors = passages[:0]
    found = find(asked(queries, passages, [[7], [0]]), opened, ["ann"], 4)
    for query, bits in enumerate(({7: 1, 8: 2, 9: 3, 10: 8}, {3: 4, 1: 5})):
        scores = {row: float(queries[query] @ passages[row]) for row in bits}
        order = sorted(bits, key=lambda row: -scores[row])
        assert found.rows[query].tolist() == [*order, *[-1] * (4 - len(order))]
        assert found.sources[query].tolist() == [*(bits[row] for row in order), *[0] * (4 - len(order))]
