import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from miner.filters import REASONS, FilterConfig, judge, lowest_positive, outlying, refused_by, too_close
from retriever.errors import InputError
from retriever.negatives import Verdict
from retriever.protocols import FloatArray, IntArray


@dataclass(frozen=True)
class Lists:
    """Ranked lists with all that a verdict depends on."""

    rows: IntArray
    scores: FloatArray
    positives: IntArray
    positive_scores: FloatArray
    query_hash: NDArray[np.uint64]
    text_hash: NDArray[np.uint64]

    def judged(self, config: FilterConfig) -> NDArray[np.uint8]:
        return judge(
            self.rows, self.scores, self.positives, self.positive_scores, self.query_hash, self.text_hash, config
        )


def shaped(draw: Callable[[Any], Any], elements: st.SearchStrategy[Any], *shape: int) -> list[Any]:
    flat = draw(st.lists(elements, min_size=math.prod(shape), max_size=math.prod(shape)))
    return list(np.array(flat).reshape(shape))


SCORES = st.integers(-8, 8).map(lambda n: n / 4)  # few values, exact in float32: ties and equal limits happen
LIMITS = st.none() | st.sampled_from([-0.25, 0.0, 0.25, 0.5, 1.0])


@st.composite
def ranked_lists(draw: Callable[[Any], Any]) -> Lists:
    queries, depth, width, corpus = (draw(st.integers(1, high)) for high in (4, 6, 3, 6))
    return Lists(
        rows=np.array(shaped(draw, st.integers(-1, corpus - 1), queries, depth), np.int32),
        scores=np.array(shaped(draw, SCORES, queries, depth), np.float32),
        positives=np.array(shaped(draw, st.integers(-1, corpus - 1), queries, width), np.int32),
        positive_scores=np.array(shaped(draw, SCORES, queries, width), np.float32),
        query_hash=np.array(shaped(draw, st.integers(0, 3), queries), np.uint64),
        text_hash=np.array(shaped(draw, st.integers(0, 4), corpus), np.uint64),
    )


@st.composite
def limits(draw: Callable[[Any], Any]) -> FilterConfig:
    range_min = draw(st.integers(0, 4))
    range_max = draw(st.none() | st.integers(range_min + 1, 7))
    spreads = st.none() | st.sampled_from([-0.5, 0.0, 0.5, 1.0, 1.5])
    margins = draw(LIMITS), draw(LIMITS), draw(st.none() | SCORES)
    return FilterConfig(range_min, range_max, *margins, draw(spreads), draw(spreads))


def verdict_by_hand(lists: Lists, query: int, rank: int, config: FilterConfig) -> Verdict:
    """Judge one candidate from the rules, in plain Python."""
    row, score = int(lists.rows[query, rank]), float(lists.scores[query, rank])
    known = [
        (int(p), float(s)) for p, s in zip(lists.positives[query], lists.positive_scores[query], strict=True) if p >= 0
    ]
    if row < 0:
        return Verdict.FILTERED
    if row in [p for p, _ in known]:
        return Verdict.POSITIVE
    if lists.text_hash[row] in [lists.query_hash[query], *(lists.text_hash[p] for p, _ in known)]:
        return Verdict.DUPLICATE
    ceilings = [] if config.max_score is None else [config.max_score]
    if known:
        lowest = min(s for _, s in known)
        ceilings += [lowest - config.absolute_margin] if config.absolute_margin else []
        ceilings += [lowest - config.relative_margin * abs(lowest)] if config.relative_margin else []
    ceilings += spread_ceilings(lists, query, config)
    outside = rank < config.range_min or (config.range_max is not None and rank >= config.range_max)
    return Verdict.FILTERED if outside or any(score > c for c in ceilings) else Verdict.ELIGIBLE


def spread_ceilings(lists: Lists, query: int, config: FilterConfig) -> list[float]:
    """Return the limits that the query's other candidates set: its own list, without positives and their duplicates."""
    known = [int(p) for p in lists.positives[query] if p >= 0]
    same = [lists.query_hash[query], *(lists.text_hash[p] for p in known)]
    rest = [
        float(score)
        for row, score in zip(lists.rows[query].tolist(), lists.scores[query], strict=True)
        if row >= 0 and row not in known and lists.text_hash[row] not in same
    ]
    if not rest:
        return []
    mean = sum(rest) / len(rest)
    deviation = math.sqrt(sum((score - mean) ** 2 for score in rest) / len(rest))
    lower, upper = quantile(rest, 0.25), quantile(rest, 0.75)
    found = [] if config.adaptive is None else [mean + config.adaptive * deviation + TINY]
    return found if config.iqr is None else [*found, upper + config.iqr * (upper - lower) + TINY]


TINY = 1e-9
"""Quarters are exact in float64 but their means are not: a score may lie on its limit."""


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (place - math.floor(place)) * (high - low)


@given(ranked_lists(), limits())
def test_verdicts_are_those_of_the_rules_taken_one_by_one(lists: Lists, config: FilterConfig) -> None:
    queries, depth = lists.rows.shape
    expected = [[verdict_by_hand(lists, q, r, config) for r in range(depth)] for q in range(queries)]
    np.testing.assert_array_equal(lists.judged(config), expected)


@given(ranked_lists(), limits())
def test_each_refused_candidate_has_the_first_reason_that_refuses_it(lists: Lists, config: FilterConfig) -> None:
    verdicts, expected = lists.judged(config), dict.fromkeys(REASONS, 0)
    for query, rank in zip(*np.nonzero((lists.rows >= 0) & (verdicts != Verdict.ELIGIBLE)), strict=True):
        reasons = {Verdict.POSITIVE: "positive", Verdict.DUPLICATE: "duplicate"}
        by_range = {"range_min": config.range_min, "range_max": config.range_max}
        for name in REASONS[3:]:
            values = by_range if name == "range" else {name: getattr(config, name)}
            alone = FilterConfig(**{"relative_margin": None, **values})
            reasons.setdefault(verdict_by_hand(lists, query, rank, alone), name)
        expected[reasons[Verdict(verdicts[query, rank])]] += 1
    found = refused_by(lists.rows, lists.scores, verdicts, lists.positives, lists.positive_scores, config)
    assert found == expected and list(found) == list(REASONS)


def refused(scores: list[float], positives: list[float], config: FilterConfig) -> list[bool]:
    """Ask too_close about one query, whose positives are rows 0, 1 …."""
    rows = np.arange(len(positives), dtype=np.int32)[None]
    answer: list[bool] = too_close(np.array([scores], np.float32), rows, np.array([positives], np.float32), config)[
        0
    ].tolist()
    return answer


def test_a_relative_margin_lies_below_a_negative_positive_score_too() -> None:
    # The factor 1 − m alone, as in s > s⁺·(1 − m), would put the limit at −0.45, above the positive itself.
    tenth = FilterConfig(relative_margin=0.1)
    assert refused([-0.44, -0.5, -0.54, -0.56], [-0.5], tenth) == [True, True, True, False]
    assert refused([0.56, 0.5, 0.46, 0.44], [0.5], tenth) == [True, True, True, False]


def test_margins_are_measured_from_the_lowest_positive() -> None:
    assert refused([0.5, 0.3], [0.9, 0.4], FilterConfig(absolute_margin=0.05)) == [True, False]


@pytest.mark.parametrize("off", [0.0, None])
def test_a_margin_of_nothing_is_off(off: float | None) -> None:
    assert refused([9.0], [0.1], FilterConfig(absolute_margin=off, relative_margin=off)) == [False]


def test_a_query_without_positives_has_no_margin_but_a_highest_score() -> None:
    nobody, zero = np.array([[-1]], np.int32), np.zeros((1, 1), np.float32)
    config = FilterConfig(absolute_margin=0.1, relative_margin=0.1, max_score=0.8)
    assert too_close(np.array([[0.9, 0.5]], np.float32), nobody, zero, config).tolist() == [[True, False]]


def test_a_positive_that_was_not_retrieved_still_guards_its_duplicates() -> None:
    lists = Lists(
        rows=np.array([[1, 2, 3]], np.int32),
        scores=np.array([[0.9, 0.8, 0.7]], np.float32),
        positives=np.array([[0, -1]], np.int32),
        positive_scores=np.array([[0.1, 0.0]], np.float32),
        query_hash=np.array([13], np.uint64),
        text_hash=np.array([10, 10, 12, 13], np.uint64),
    )
    assert lists.judged(FilterConfig()).tolist() == [[Verdict.DUPLICATE, Verdict.ELIGIBLE, Verdict.DUPLICATE]]


def test_a_pad_among_the_positives_matches_no_pad_among_the_candidates() -> None:
    lists = Lists(
        rows=np.array([[-1, 3]], np.int32),
        scores=np.zeros((1, 2), np.float32),
        positives=np.array([[-1]], np.int32),
        positive_scores=np.zeros((1, 1), np.float32),
        query_hash=np.array([99], np.uint64),
        text_hash=np.array([0, 1, 2, 0], np.uint64),  # row 3 has the text of row 0, where a clipped pad points
    )
    assert lists.judged(FilterConfig()).tolist() == [[Verdict.FILTERED, Verdict.ELIGIBLE]]


@pytest.mark.parametrize(
    ("key", "config"),
    [
        ("range_min", {"range_min": -1}),
        ("range_max", {"range_min": 5, "range_max": 5}),
        ("absolute_margin", {"absolute_margin": math.nan}),
        ("relative_margin", {"relative_margin": math.inf}),
        ("max_score", {"max_score": -math.inf}),
        ("adaptive", {"adaptive": math.nan}),
        ("iqr", {"iqr": math.inf}),
    ],
)
def test_a_limit_that_makes_no_sense_is_named(key: str, config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"\[negatives\] {key} = "):
        FilterConfig(**config)


def test_a_score_that_stands_out_among_its_own_query_s_is_refused() -> None:
    """ATSS's μ + σ and UNPG's Q3 + 1.5·IQR, computed by hand."""
    lists = Lists(
        rows=np.array([[0, 1, 2, 3, 4]], np.int32),
        scores=np.array([[0.9, 0.7, 0.4, 0.2, 0.1]], np.float32),
        positives=np.array([[0]], np.int32),  # at .9, it raises neither
        positive_scores=np.array([[0.9]], np.float32),
        query_hash=np.array([99], np.uint64),
        text_hash=np.arange(5, dtype=np.uint64),
    )
    refused = [Verdict.POSITIVE, Verdict.FILTERED, *[Verdict.ELIGIBLE] * 3]
    assert lists.judged(FilterConfig(adaptive=1.0)).tolist() == [refused]  # μ .35, σ .229
    assert lists.judged(FilterConfig(iqr=0.5)).tolist() == [refused]  # Q1 .175, Q3 .475
    for high in (FilterConfig(adaptive=1.6), FilterConfig(iqr=1.5)):
        assert lists.judged(high).tolist() == [[Verdict.POSITIVE, *[Verdict.ELIGIBLE] * 4]]


@given(st.lists(SCORES, min_size=1, max_size=9), st.floats(0, 2))
def test_the_limit_of_iqr_is_where_quartiles_put_it(counted: list[float], k: float) -> None:
    lower, upper = quantile(counted, 0.25), quantile(counted, 0.75)
    limit = upper + k * (upper - lower)
    refused = outlying(np.array([counted], np.float32), np.ones((1, len(counted)), np.bool_), FilterConfig(iqr=k))[0]
    for score, gone in zip(counted, refused, strict=True):
        assert gone == (score > limit) or abs(score - limit) < 1e-9


def test_the_upper_quartile_is_three_quarters_up() -> None:
    scores = np.array([[0.0, 0.0, 0.0, 1.0, 1.25]], np.float32)  # Q1 0, Q3 1; at .8 of the way it would be 1.05
    everything = np.ones((1, 5), np.bool_)
    assert outlying(scores, everything, FilterConfig(iqr=0.21)).tolist() == [[False] * 4 + [True]]
    assert outlying(scores, everything, FilterConfig(iqr=0.26)).tolist() == [[False] * 5]


def test_candidates_that_score_alike_do_not_stand_out() -> None:
    scores = np.full((1, 7), 0.1, np.float32)  # whose mean in float64 is not .1
    config = FilterConfig(adaptive=0.0, iqr=0.0)
    assert not outlying(scores, np.ones((1, 7), np.bool_), config).any()
    assert not outlying(scores, np.zeros((1, 7), np.bool_), config).any()


def test_the_lowest_positive_is_the_one_to_measure_from() -> None:
    positives = np.array([[3, 4, -1], [5, -1, -1], [-1, -1, -1]], np.int32)
    scores = np.array([[0.9, 0.4, 0.0], [-0.5, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    np.testing.assert_allclose(lowest_positive(positives, scores), [0.4, -0.5, math.nan], rtol=1e-6)
