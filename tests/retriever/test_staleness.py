from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.negatives import NegativeSet, Verdict
from retriever.staleness import EASY, TOP, Probe, measure, most_changed, take_probe


def pool(queries: int, depth: int) -> NegativeSet:
    """A set whose candidates are numbered through, −1 in the last place."""
    passages = np.arange(queries * depth, dtype=np.int32).reshape(queries, depth)
    passages[:, -1] = -1
    nothing = np.zeros((queries, depth), np.uint8)
    return NegativeSet(
        queries=np.arange(queries, dtype=np.int32),
        passages=passages,
        scores=np.linspace(1, 0, queries * depth, dtype=np.float32).reshape(queries, depth),
        sources=nothing,
        verdicts=nothing,
        positives=passages[:, :1] + 1000,
        positive_scores=np.ones((queries, 1), np.float32),
        dropped=np.zeros(queries, np.bool_),
        mined_from=np.zeros(queries, np.int32),
    )


def test_a_probe_is_a_sample_that_the_seed_fixes() -> None:
    one, same, other = (take_probe(pool(50, 6), 8, 4, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.queries, same.queries) and not np.array_equal(one.queries, other.queries)
    assert len(set(one.queries.tolist())) == 8
    assert np.array_equal(one.passages, pool(50, 6).passages[one.queries, :4])
    assert set(one.rows) == {*one.passages.ravel(), *one.positives}


def test_a_probe_measures_from_the_lowest_positive_and_knows_what_may_be_drawn() -> None:
    found = pool(3, 4)
    verdicts = np.array([Verdict.POSITIVE, Verdict.DUPLICATE, Verdict.JUDGED_IRRELEVANT, Verdict.ELIGIBLE], np.uint8)
    positives = np.array([[7, 8, -1], [9, -1, -1], [-1, -1, -1]], np.int32)
    scores = np.array([[0.8, 0.3, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    probe = take_probe(
        replace(found, verdicts=np.tile(verdicts, (3, 1)), positives=positives, positive_scores=scores), 3, 4, 0
    )
    assert probe.positives.tolist() == [8, 9, -1]
    assert probe.negatives.tolist() == [[False, False, True, True]] * 3


def test_a_probe_takes_no_more_than_there_is() -> None:
    found = take_probe(pool(3, 4), 8, 9, 0)
    assert found.passages.shape == (3, 4)
    assert -1 not in found.rows


@pytest.mark.parametrize("depth", [1, 9, 10, 11, 14, 20, 35])
def test_how_far_staleness_can_go_is_where_the_last_came_first(depth: int) -> None:
    probe = probe_of([np.linspace(1, 0, depth).tolist()])
    vectors = np.linspace(0, 1, len(probe.rows), dtype=np.float32)[:, None]
    found = measure(probe, np.ones((1, 1), np.float32), vectors, 1.0)
    assert 1 - found.overlap == pytest.approx(most_changed(depth))


def probe_of(scores: list[list[float]]) -> Probe:
    """Queries whose candidates scored so when they were mined; query i's positive is row 1000 + i."""
    then = np.array(scores, np.float32)
    passages = np.arange(then.size, dtype=np.int32).reshape(then.shape)
    queries = np.arange(len(then), dtype=np.int32)
    return Probe(queries, passages, then, np.ones(then.shape, np.bool_), queries + 1000)


def vectors(probe: Probe, now: Any, positive: float) -> tuple[Any, Any]:
    """Query i points along axis i; a passage's component there is its present score."""
    table = np.zeros((len(probe.rows), len(probe.queries)), np.float32)
    for query, row in enumerate(probe.passages):
        for place, passage in enumerate(row):
            table[np.searchsorted(probe.rows, passage), query] = now[query, place]
        table[np.searchsorted(probe.rows, probe.positives[query]), query] = positive
    return np.eye(len(probe.queries), dtype=np.float32), table


def test_unchanged_vectors_are_not_stale() -> None:
    probe = probe_of([list(np.linspace(0.9, 0.1, 20)), list(np.linspace(0.8, 0.2, 20))])
    found = measure(probe, *vectors(probe, probe.scores, 0.9), temperature=1.0)
    assert (found.overlap, found.easy) == (1.0, 0.0)
    assert found.drift == pytest.approx(0, abs=1e-6)


def test_overlap_drift_and_easy_are_counted() -> None:
    probe = probe_of([list(np.linspace(0.9, 0.1, 2 * TOP))])
    now = probe.scores - 0.05
    now[0, :4], now[0, TOP : TOP + 4] = -0.5, 0.95  # four of the best fall, four others rise
    found = measure(probe, *vectors(probe, now, positive=1.0), temperature=0.1)
    assert found.overlap == pytest.approx(1 - 4 / TOP)
    assert found.drift == pytest.approx(float((now - probe.scores).mean()), abs=1e-6)
    gaps = [1.0 - float(score) for score in now[0, :TOP]]
    assert found.easy == pytest.approx(np.mean([1 / (1 + np.exp(gap / 0.1)) < EASY for gap in gaps]))
    assert 0 < found.easy < 1


def test_pads_and_what_may_not_be_drawn_are_no_negatives() -> None:
    probe = probe_of([[0.9, 0.8, 0.7]])
    probe.passages[0, 2], probe.positives[0], probe.negatives[0, 0] = -1, 0, False
    found = measure(probe, np.ones((1, 1), np.float32), np.array([[0.9], [-9.0]], np.float32), temperature=0.05)
    assert found.easy == 1.0  # of the one negative that is left
    assert found.drift == pytest.approx((0 - 9.8) / 2, abs=1e-5)


@given(st.integers(1, 4), st.integers(1, 25), st.integers(0, 99))
def test_figures_stay_in_their_ranges(queries: int, depth: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    probe = probe_of(np.sort(rng.normal(size=(queries, depth)))[:, ::-1].tolist())
    found = measure(probe, *vectors(probe, rng.normal(size=(queries, depth)), 0.3), temperature=0.05)
    assert 0 <= found.overlap <= 1 and 0 <= found.easy <= 1
    assert depth > TOP or found.overlap == 1
