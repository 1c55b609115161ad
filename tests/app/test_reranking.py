import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app import reranking
from app.reranking import Candidates, Journal, journal_key, rerank, reranking_facts, warn_of_cut_pairs
from retriever.data import Corpus
from retriever.errors import InputError
from retriever.protocols import FloatArray
from tests.app.command_line import never
from tests.stand_ins import OverlapRanker, tiny_store, write_tiny_data


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("reranking")
    return tiny_store(folder / "store", write_tiny_data(folder / "data"))[1]


class Planted(OverlapRanker):
    """Scores passage row r of every query by ``scores[r]``, and remembers what it was asked."""

    def __init__(self, corpus: Corpus, scores: Sequence[float], cut: int = 0) -> None:
        super().__init__()
        self.by_text = dict(zip(corpus.texts(range(len(corpus))), itertools.cycle(scores), strict=False))
        self.asked: list[tuple[str, str]] = []
        self.cut = cut

    def tokenize(self, queries: Sequence[str], passages: Sequence[str]) -> tuple[list[Any], list[int], int]:
        self.asked += zip(queries, passages, strict=True)
        return list(passages), [1] * len(passages), self.cut

    def score_tokens(self, pairs: Sequence[Any]) -> FloatArray:
        return np.array([self.by_text[pair] for pair in pairs], np.float32)


def asked(corpus: Corpus, hits: Sequence[Sequence[int]]) -> Candidates:
    names = [f"q{n}" for n in range(len(hits))]
    return Candidates(names, [f"query {name}" for name in names], corpus, np.array(hits, np.int32))


def test_the_first_hits_are_reordered_and_the_others_stay_behind_them(corpus: Corpus) -> None:
    ranker = Planted(corpus, [float(row) for row in range(60)])
    done = rerank(ranker, asked(corpus, [[3, 5, 4, 9, 1], [7, 8, -1, -1, -1]]), depth=3)
    assert done.hits.tolist() == [[5, 4, 3, 9, 1], [8, 7, -1, -1, -1]]
    assert done.scores[0, :3].tolist() == [5, 4, 3] and done.scores[1, :2].tolist() == [8, 7]
    assert (np.diff(done.scores[0]) < 0).all() and done.scores[0, 3] == np.nextafter(np.float32(3), np.float32(0))
    assert np.isneginf(done.scores[1, 2:]).all()
    assert (done.depth, done.pairs, len(ranker.asked)) == (3, 5, 5)
    assert ranker.asked[0] == ("query q0", corpus.text(3))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_order_is_that_of_a_stable_sort_whatever_the_ties_depths_and_chunks(
    corpus: Corpus, data: st.DataObject
) -> None:
    queries, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 9))
    depth, chunk = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 20))
    planted = data.draw(arrays(np.float32, 60, elements=st.sampled_from([0.0, 1.0, -1.0, 0.5])))
    hits = []
    for _ in range(queries):
        rows = data.draw(st.lists(st.integers(0, 59), unique=True, max_size=width))
        hits.append(rows + [-1] * (width - len(rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reranking, "CHUNK_PAIRS", chunk)
        done = rerank(Planted(corpus, planted.tolist()), asked(corpus, hits), depth)
    for before, after, scores in zip(hits, done.hits.tolist(), done.scores, strict=True):
        kept = [row for row in before if row >= 0]
        head = sorted(kept[:depth], key=lambda row: -planted[row])
        assert after == head + kept[depth:] + [-1] * (width - len(kept))
        assert (np.diff(scores[: len(kept)]) < 0).all(), "so that a run file keeps the order"
        assert np.abs(scores[: len(head)] - planted[head]).max(initial=0) < 1e-5


def test_progress_counts_pairs_and_cut_ones_are_told(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reranking, "CHUNK_PAIRS", 4)
    seen: list[tuple[int, int]] = []
    candidates = asked(corpus, [[1, 2], [3, 4], [5, -1], [6, 7], [8, 9]])
    done = rerank(Planted(corpus, [1.0], cut=2), candidates, 2, lambda *of: seen.append(of))
    assert seen == [(0, 9), (4, 9), (7, 9), (9, 9)]
    said: list[str] = []
    warn_of_cut_pairs(done, said.append)
    assert said == ["6 of 9 pairs are longer than the ranker reads; the rest is not read"]
    facts = reranking_facts(done)
    assert (facts["depth"], facts["pairs"], facts["cut_pairs"]) == (2, 9, 6) and facts["seconds"] >= 0
    warn_of_cut_pairs(rerank(Planted(corpus, [1.0]), candidates, 2), never)


class Killed(Exception):
    pass


def test_a_killed_reranking_goes_on_to_the_same_result(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reranking, "CHUNK_PAIRS", 4)
    candidates = asked(corpus, [[n, n + 1] for n in range(9)])
    scores = np.random.default_rng(3).normal(size=60).tolist()
    whole = rerank(Planted(corpus, scores), candidates, 2)
    key = journal_key(OverlapRanker(), candidates, 2)

    def kill(done: int, total: int) -> None:
        if done >= 8:
            raise Killed

    path = tmp_path / "scores.jsonl"
    with pytest.raises(Killed):
        rerank(Planted(corpus, scores), candidates, 2, kill, Journal(path, key, never))
    with path.open("a") as file:
        file.write('{"first": 4, "sco')  # torn by the kill
    journal, ranker, seen = Journal(path, key, never), Planted(corpus, scores), []
    again = rerank(ranker, candidates, 2, lambda *of: seen.append(of), journal)
    np.testing.assert_array_equal(again.hits, whole.hits)
    np.testing.assert_array_equal(again.scores, whole.scores)
    assert (journal.pairs, len(ranker.asked), again.pairs) == (8, 10, 18) and seen[-1] == (10, 10)


def test_a_journal_of_something_else_is_said_and_begun_anew(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    said: list[str] = []
    candidates = asked(corpus, [[0, 1]])
    keys = [
        journal_key(OverlapRanker(), candidates, 2),
        journal_key(OverlapRanker(), candidates, 1),
        journal_key(OverlapRanker(), asked(corpus, [[1, 0]]), 2),
    ]
    assert len(set(keys)) == 3
    rerank(Planted(corpus, [1.0]), candidates, 2, journal=Journal(path, keys[0], never))
    assert Journal(path, keys[0], never).pairs == 2
    assert Journal(path, keys[1], said.append).pairs == 0 and "begins anew" in said[0]
    assert Journal(path, keys[0], said.append).pairs == 0


def test_scores_that_are_no_numbers_are_refused(corpus: Corpus) -> None:
    with pytest.raises(InputError, match="1 of 2 scores of the ranker are no numbers"):
        rerank(Planted(corpus, [0.0, float("nan")]), asked(corpus, [[0, 1]]), 2)
