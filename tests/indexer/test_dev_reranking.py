from collections.abc import Sequence
from math import log2

import numpy as np
import pytest

from indexer.dev_reranking import MOST_PAIRS, rerank_dev, sample
from indexer.evaluation import Evaluation
from retriever.data import Corpus, QuerySet
from retriever.errors import StoreError
from retriever.metrics import mean, per_query
from retriever.protocols import FloatArray, IntArray, Progress, silent
from retriever.store import Store

NDCG = "nDCG@10"


class GivenRanker:
    """Gives each passage the score that it has in ``given``, 0 without one, and counts the pairs that it reads."""

    def __init__(self, given: dict[str, float]) -> None:
        self.fingerprint = "given"
        self.given = given
        self.pairs: list[tuple[str, str]] = []

    def score(self, queries: Sequence[str], passages: Sequence[str], progress: Progress = silent) -> FloatArray:
        """Return float32 [n]."""
        self.pairs += zip(queries, passages, strict=True)
        progress(len(queries), len(queries))
        return np.array([self.given.get(passage, 0.0) for passage in passages], np.float32)


def found(hits: IntArray, dev: QuerySet) -> Evaluation:
    figures = per_query(hits, dev.judgements, [NDCG])
    return Evaluation(mean(figures), figures, hits, np.zeros(hits.shape, np.float32))


def dev_set(queries: int, relevant: int) -> QuerySet:
    ids = [f"q{number}" for number in range(queries)]
    return QuerySet("dev", ids, [f"text of {name}" for name in ids], [{relevant: 1}] * queries)


def test_the_first_hits_are_reordered_and_those_behind_stay(tiny: tuple[Store, Corpus]) -> None:
    _, corpus = tiny
    dev, hits = dev_set(2, relevant=3), np.array([[5, 4, 3, 2, 1, 0], [5, 4, 3, -1, -1, -1]], np.int32)
    hits = np.concatenate([hits, np.full((2, 4), -1, np.int32)], axis=1)
    said: list[tuple[int, int]] = []
    texts = corpus.texts([3, 1])
    ranker = GivenRanker({texts[0]: 2.0, texts[1]: 9.0})

    def reranked(depth: int) -> list[float]:
        done = rerank_dev(ranker, dev, corpus, found(hits, dev), depth, 13, lambda *step: said.append(step))
        assert done.facts["before"] == pytest.approx(1 / log2(4))
        assert done.facts[NDCG] == pytest.approx(done.figures.mean())
        return [float(figure) for figure in done.figures]

    assert reranked(2) == pytest.approx([1 / log2(4)] * 2), "the relevant passage is the third: not looked at"
    assert said[-1] == (4, 4) and len(ranker.pairs) == 4
    assert reranked(3) == pytest.approx([1, 1])
    assert reranked(5) == pytest.approx([1 / log2(3), 1]), "row 1 comes first, and pads are no pairs"
    assert len(ranker.pairs) == 4 + 6 + 8
    assert ranker.pairs[0] == ("text of q0", corpus.texts([5])[0])


def test_hits_that_score_alike_keep_their_order(tiny: tuple[Store, Corpus]) -> None:
    _, corpus = tiny
    dev, hits = dev_set(1, relevant=2), np.arange(12, dtype=np.int32)[None]
    done = rerank_dev(GivenRanker({}), dev, corpus, found(hits, dev), 12, 13, silent)
    assert done.facts[NDCG] == done.facts["before"] == pytest.approx(1 / log2(4))


def test_a_sample_bounds_the_pairs_and_the_others_have_no_figure(tiny: tuple[Store, Corpus]) -> None:
    _, corpus = tiny
    dev, ranker = dev_set(300, relevant=0), GivenRanker({})
    hits = np.tile(np.arange(60, dtype=np.int32), (300, 1))
    done = rerank_dev(ranker, dev, corpus, found(hits, dev), 50, 13, silent)
    assert len(ranker.pairs) == done.facts["pairs"] == MOST_PAIRS == 2000
    assert (done.facts["queries"], done.facts["depth"]) == (40, 50)
    measured = np.flatnonzero(~np.isnan(done.figures)).tolist()
    assert [text for text, _ in ranker.pairs[::50]] == [dev.texts[place] for place in measured]
    assert {dev.texts[place] for place in measured} == {text for text, _ in ranker.pairs}


def test_a_sample_depends_on_the_seed_and_on_each_id_alone() -> None:
    ids = [f"q{number}" for number in range(500)]
    drawn = sample(ids, 100, 13)
    assert len(drawn) == 100 and (np.diff(drawn) > 0).all()
    assert 20 < np.mean(drawn < 250) * 100 < 80, "it is spread over the queries"
    other = sample(ids, 100, 14)
    assert len(np.intersect1d(drawn, other)) < 50
    turned = sample(ids[::-1], 100, 13)
    assert {ids[place] for place in drawn} == {ids[::-1][place] for place in turned}
    fewer = {ids[place] for place in sample(ids[:400], 100, 13)}
    kept = {ids[place] for place in drawn if place < 400}
    assert kept <= fewer, "a query that stays in the set stays in the sample"
    np.testing.assert_array_equal(sample(ids[:5], 100, 13), np.arange(5))


def test_a_ranker_that_has_diverged_is_said(tiny: tuple[Store, Corpus]) -> None:
    _, corpus = tiny
    dev, hits = dev_set(1, relevant=0), np.arange(20, dtype=np.int32)[None]
    ranker = GivenRanker({corpus.texts([4])[0]: float("nan")})
    with pytest.raises(StoreError, match=r"1 of 20 scores of the ranker are not finite"):
        rerank_dev(ranker, dev, corpus, found(hits, dev), 20, 13, silent)
