import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.counter_hash import gumbel
from miner.samplers import SAMPLERS, SamplerConfig, draw
from retriever.errors import InputError

DRAWS = 60_000
WEIGHTS = np.array([0.5, 0.25, 0.15, 0.1])
"""Unequal on purpose: uniform weights would not show a draw that ignores them."""


def drawn_pairs(weights: np.ndarray) -> np.ndarray:
    """Draw two of the candidates for each of many queries: columns int [DRAWS, 2]."""
    queries, passages = np.arange(DRAWS)[:, None], np.arange(len(weights))[None]
    columns, mask = draw(np.log(weights) + np.zeros((DRAWS, 1)), 2, gumbel("test", queries, passages))
    assert mask.all()
    return columns


def close(count: int, probability: float) -> bool:
    """Tell whether a count of DRAWS lies within four standard deviations."""
    return abs(count - DRAWS * probability) < 4 * math.sqrt(DRAWS * probability * (1 - probability))


@pytest.mark.parametrize("weights", [WEIGHTS, np.full(5, 0.2)], ids=["unequal", "uniform"])
def test_the_first_draw_is_in_proportion_to_the_weights(weights: np.ndarray) -> None:
    first = drawn_pairs(weights)[:, 0]
    for column, probability in enumerate(weights / weights.sum()):
        assert close(int((first == column).sum()), probability)


def test_two_draws_have_the_probability_of_drawing_one_after_the_other() -> None:
    pairs = drawn_pairs(WEIGHTS)
    for one, other in permutations(range(len(WEIGHTS)), 2):
        probability = WEIGHTS[one] * WEIGHTS[other] / (1 - WEIGHTS[one])
        assert close(int(((pairs[:, 0] == one) & (pairs[:, 1] == other)).sum()), probability)


def test_weights_too_small_for_a_probability_are_still_drawn_by() -> None:
    tiny = np.array([[-2000.0, -2001.0]])  # exp of either is 0 in float64
    first = np.array([draw(tiny, 1, gumbel("tiny", query, np.arange(2)[None]))[0][0, 0] for query in range(2000)])
    assert (first == 0).mean() == pytest.approx(1 / (1 + np.exp(-1)), abs=0.04)


@given(st.lists(st.sampled_from([-np.inf, 0.0, 1.0]), min_size=1, max_size=6), st.integers(1, 8))
def test_nothing_is_drawn_twice_nor_against_its_weight(weights: list[float], k: int) -> None:
    log_weights = np.array([weights])
    columns, mask = draw(log_weights, k, gumbel("any", np.arange(len(weights))[None]))
    assert columns.shape == mask.shape == (1, k)
    picked = columns[mask].tolist()
    assert len(picked) == len(set(picked)) == min(k, sum(w > -np.inf for w in weights))
    assert all(weights[column] > -np.inf for column in picked)
    assert not columns[~mask].any()


def test_top_takes_the_best_eligible_without_noise() -> None:
    scores = np.array([[0.9, 0.8, 0.8, 0.7]], np.float32)
    eligible = np.array([[False, True, True, True]])
    top = SAMPLERS["top"]
    columns, mask = draw(top.log_weights(scores, eligible), 2, 0.0)
    assert not top.random
    assert columns.tolist() == [[1, 2]] and mask.all()


def test_equal_scores_are_taken_in_the_order_of_their_ranks() -> None:
    scores = np.tile(np.array([0.5, 0.25], np.float32), (1, 150))
    columns, _ = draw(SAMPLERS["top"].log_weights(scores, np.ones(scores.shape, np.bool_)), 150, 0.0)
    assert columns[0].tolist() == list(range(0, 300, 2))


def test_uniform_ignores_the_scores() -> None:
    log_weights = SAMPLERS["uniform"].log_weights(
        np.array([[9.0, -9.0, 1.0]], np.float32), np.array([[True, True, False]])
    )
    assert log_weights.tolist() == [[0.0, 0.0, -np.inf]]


def test_an_unknown_sampler_is_answered_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"sampler.name = 'unifrom': choose one of top, uniform"):
        SamplerConfig("unifrom")
