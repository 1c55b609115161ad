from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.false_negatives import (
    Ballot,
    Election,
    Ground,
    elect,
    one_a_model,
    pool_voter,
    scored_ballot,
    suspects,
    vote,
)
from retriever.negatives import NegativeSet, Verdict

PASSAGES, QUERIES = 20, 3


def pool(scores: Any, positives: Any, verdicts: dict[tuple[int, int], Verdict] | None = None) -> NegativeSet:
    """Candidates are passages 0, 1, 2 … of each query; positives are [passage, score]."""
    values = np.array(scores, np.float32)
    count, depth = values.shape
    judged = np.zeros((count, depth), np.uint8)
    for place, verdict in (verdicts or {}).items():
        judged[place] = verdict
    return NegativeSet(
        queries=np.arange(count, dtype=np.int32),
        passages=np.tile(np.arange(depth, dtype=np.int32), (count, 1)),
        scores=values,
        sources=np.ones((count, depth), np.uint8),
        verdicts=judged,
        positives=np.array([[one[0]] for one in positives], np.int32),
        positive_scores=np.array([[one[1]] for one in positives], np.float32),
        dropped=np.zeros(count, np.bool_),
        mined_from=np.zeros(count, np.int32),
    )


def ground(*rows: int) -> Ground:
    return Ground(QUERIES, PASSAGES, np.array(rows, np.int32))


def speaking(count: int) -> Any:
    return np.ones(count, np.bool_)


def test_a_suspect_is_above_every_positive_and_nobody_labelled_it() -> None:
    verdicts = {(0, 0): Verdict.POSITIVE, (0, 1): Verdict.FILTERED, (1, 0): Verdict.DUPLICATE}
    verdicts |= {(1, 1): Verdict.JUDGED_RELEVANT, (1, 2): Verdict.JUDGED_IRRELEVANT}
    voter = pool_voter(
        "a", pool([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]], [(0, 0.75), (9, 0.1)], verdicts), speaking(2), 1, ground(0, 1)
    )
    assert suspects([voter], PASSAGES).tolist() == [1], "passage 2 of query 0 is below the positive"
    other = pool_voter("b", pool([[0.2, 0.1, 0.9]], [(9, 0.15)], {(0, 2): Verdict.POSITIVE}), speaking(1), 1, ground(0))
    assert suspects([voter, other], PASSAGES).tolist() == [1]


def test_the_highest_positive_counts() -> None:
    found = pool([[0.5, 0.3]], [(9, 0.2)])
    two = NegativeSet(
        **{
            **vars(found),
            "positives": np.array([[9, 10, -1]], np.int32),
            "positive_scores": np.array([[0.2, 0.4, 0.0]], np.float32),
        }
    )
    assert suspects([pool_voter("a", two, speaking(1), 1, ground(2))], PASSAGES).tolist() == [2 * PASSAGES]


def test_a_pair_outside_the_pool_is_below_only_a_positive_that_is_within_reach() -> None:
    inside = pool([[0.9, 0.8], [0.9, 0.8]], [(9, 0.85), (9, 0.1)])
    voter = pool_voter("a", inside, speaking(2), 1, ground(0, 1))
    keys = np.array([0, 5, PASSAGES, PASSAGES + 5, 2 * PASSAGES], np.int64)
    found = vote(voter, keys, PASSAGES)
    assert found.above.tolist() == [True, False, True, False, False]
    assert found.opinion.tolist() == [True, True, True, False, False], "query 2 is not spoken of"
    assert found.gap[:1].tolist() == pytest.approx([0.05]) and np.isnan(found.gap[1])
    rescored = pool_voter("b", inside, speaking(2), 0, ground(0, 1))
    assert vote(rescored, keys, PASSAGES).opinion.tolist() == [True, False, True, False, False]


def test_a_line_that_was_carried_over_says_nothing() -> None:
    voter = pool_voter("a", pool([[0.9], [0.9]], [(9, 0.1), (9, 0.1)]), np.array([True, False]), 1, ground(0, 1))
    keys = np.array([0, PASSAGES], np.int64)
    assert suspects([voter], PASSAGES).tolist() == [0]
    assert vote(voter, keys, PASSAGES).opinion.tolist() == [True, False]


def ballot(name: str, gaps: list[float]) -> Ballot:
    return scored_ballot(name, np.array(gaps, np.float32), np.zeros(len(gaps), np.float32))


def test_all_of_one_model_have_one_ballot_whatever_pairs_each_scored() -> None:
    nan = float("nan")
    first, more = ballot("a", [0.1, 0.2, nan]), ballot("a of another run", [nan, 0.2000004, -0.3])
    other, silent = ballot("b", [0.1, 0.3, nan]), ballot("c", [nan, nan, nan])
    found = one_a_model([first, other, more, silent, silent])
    assert [one.name for one in found] == ["a", "b", "c", "c"], "of what scored nothing nobody knows"
    assert found[0].gap.tolist() == pytest.approx([0.1, 0.2, -0.3])
    assert (found[0].above.tolist(), found[0].opinion.tolist()) == ([True, True, False], [True, True, True])


def test_votes_are_counted_and_many_weigh_more_than_one() -> None:
    nan = float("nan")
    keys = np.array([1, 2, 3, PASSAGES], np.int64)
    dense = [
        ballot("g1", [0.1, 0.2, nan, -0.1]),
        ballot("g2", [0.1, -0.2, nan, -0.1]),
        ballot("g3", [0.3, 0.1, 0.9, nan]),
    ]
    found = elect(keys, dense, [ballot("BM25", [7.0, 7.0, nan, 7.0])], PASSAGES)
    assert found.passages.tolist() == [1, 3, 2, 0] and found.queries.tolist() == [0, 0, 0, 1]
    assert found.votes.tolist() == [4, 1, 3, 1] and found.opinions.tolist() == [4, 1, 4, 3]
    assert found.likely.tolist() == [True, True, True, False]
    assert found.gaps.tolist() == pytest.approx([0.5 / 3, 0.9, 0.1 / 3, -0.1]), "BM25's scores are on another scale"
    assert found.by[0] == ("g1", "g2", "g3", "BM25") and found.by[3] == ("BM25",)


def test_half_of_the_voters_are_no_majority() -> None:
    both = [ballot("g1", [0.1, 0.1]), ballot("g2", [-0.1, 0.1])]
    found = elect(np.array([1, 2], np.int64), both, [], PASSAGES)
    assert found.passages.tolist() == [2, 1] and found.likely.tolist() == [True, False]


def test_nobody_votes_on_nothing() -> None:
    found: Election = elect(np.empty(0, np.int64), [], [], PASSAGES)
    assert len(found.votes) == 0 and found.likely.tolist() == [] and found.by == ()
    assert suspects([], PASSAGES).tolist() == []


@given(st.data())
def test_voting_is_what_plain_loops_say(data: st.DataObject) -> None:
    numbers = st.lists(st.integers(-4, 4), min_size=4, max_size=4)
    tables = data.draw(st.lists(st.lists(numbers, min_size=QUERIES, max_size=QUERIES), min_size=1, max_size=4))
    positives = data.draw(st.lists(st.integers(-4, 4), min_size=QUERIES, max_size=QUERIES))
    voters = [
        pool_voter(str(n), pool(one, [(9, s) for s in positives]), speaking(QUERIES), 1, ground(0, 1, 2))
        for n, one in enumerate(tables)
    ]
    keys = suspects(voters, PASSAGES)
    expected = {}
    for query in range(QUERIES):
        for passage in range(4):
            votes = sum(one[query][passage] > positives[query] for one in tables)
            if votes:
                expected[query, passage] = votes
    found = elect(keys, [vote(voter, keys, PASSAGES) for voter in voters], [], PASSAGES)
    pairs = zip(found.queries.tolist(), found.passages.tolist(), strict=True)
    assert dict(zip(pairs, found.votes.tolist(), strict=True)) == expected
    assert set(found.opinions.tolist()) <= {len(tables)}
    assert found.votes.tolist() == sorted(found.votes.tolist(), reverse=True)
