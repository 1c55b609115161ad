import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from miner.counter_hash import gumbel
from miner.samplers import SAMPLERS, Pool, SamplerConfig, draw, log_weights
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


def pool(scores: Sequence[Sequence[float]], positive: Sequence[float], *never: tuple[int, int]) -> Pool:
    """Return a pool in which every candidate but those at ``never`` is eligible."""
    eligible = np.ones(np.shape(scores), np.bool_)
    for place in never:
        eligible[place] = False
    return Pool(np.array(scores, np.float32), eligible, np.array(positive, np.float32))


def test_top_takes_the_best_eligible_without_noise() -> None:
    top = SamplerConfig("top")
    columns, mask = draw(log_weights(pool([[0.9, 0.8, 0.8, 0.7]], [1.0], (0, 0)), top), 2, 0.0)
    assert not top.random
    assert columns.tolist() == [[1, 2]] and mask.all()


def test_equal_scores_are_taken_in_the_order_of_their_ranks() -> None:
    columns, _ = draw(log_weights(pool([[0.5, 0.25] * 150], [1.0]), SamplerConfig("top")), 150, 0.0)
    assert columns[0].tolist() == list(range(0, 300, 2))


def test_uniform_ignores_the_scores() -> None:
    found = log_weights(pool([[9.0, -9.0, 1.0]], [1.0], (0, 2)), SamplerConfig("uniform"))
    assert found.tolist() == [[0.0, 0.0, -np.inf]]


def by_hand(config: SamplerConfig, scores: list[float], eligible: list[bool], positive: float) -> list[float]:
    """Compute the log weights of one query from the formulas of the literature, in plain Python."""
    counted = [s for s, may in zip(scores, eligible, strict=True) if may]
    mean = sum(counted) / len(counted)
    deviation = math.sqrt(sum((s - mean) ** 2 for s in counted) / len(counted)) or 1.0
    if config.standardize is False:
        mean, deviation = 0.0, 1.0
    if math.isnan(positive):
        positive = max(counted)
    found = []
    for rank, score in enumerate(scores):
        z, plus = (score - mean) / deviation, (positive - mean) / deviation
        a, b = 0.5 if config.a is None else config.a, config.b or 0.0
        weight = {
            "top": score,
            "uniform": 0.0,
            "log_rank": math.log(1 / math.log2(rank + 2)),
            "simans": -a * (z - plus + b) ** 2,
            "simans_laplace": -(3.0 if config.tau is None else config.tau) * abs(z - plus),
            "hardness": (1.0 if config.beta is None else config.beta) * z,
        }[config.name]
        found.append(weight if eligible[rank] else -math.inf)
    return found


EXACT = st.integers(-64, 64).map(lambda n: n / 16)
"""Scores that float32 holds exactly: ties, and pools in which all score alike, happen."""


@st.composite
def configs(draw: Callable[[Any], Any]) -> SamplerConfig:
    name = draw(st.sampled_from(sorted(SAMPLERS)))
    ranges = {"a": (0.125, 4.0), "b": (-2.0, 2.0), "tau": (0.125, 5.0), "beta": (-3.0, 3.0)}
    knobs: dict[str, Any] = {knob: draw(st.none() | st.floats(*ranges[knob])) for knob in ranges}
    knobs["standardize"] = draw(st.sampled_from([None, True, False]))
    return SamplerConfig(name, **{knob: value for knob, value in knobs.items() if knob in SAMPLERS[name].defaults})


@example(SamplerConfig("hardness", beta=-2.0), [(1.0, True), (0.5, True), (0.0, False)], 0.75)
@example(SamplerConfig("hardness", beta=2.0, standardize=False), [(1.0, True), (0.5, True)], 0.75)
@given(configs(), st.lists(st.tuples(EXACT, st.booleans()), min_size=1, max_size=7), EXACT | st.just(math.nan))
def test_weights_are_those_of_the_formulas(
    config: SamplerConfig, listed: list[tuple[float, bool]], positive: float
) -> None:
    scores, eligible = [s for s, _ in listed], [may for _, may in listed]
    found = log_weights(
        Pool(np.array([scores], np.float32), np.array([eligible]), np.array([positive], np.float32)), config
    )
    expected = by_hand(config, scores, eligible, positive) if any(eligible) else [-math.inf] * len(scores)
    np.testing.assert_allclose(found[0], expected, rtol=1e-9, atol=1e-9)


def probabilities(config: SamplerConfig, scores: list[float], positive: float) -> list[float]:
    weights = [math.exp(weight) for weight in by_hand(config, scores, [True] * len(scores), positive)]
    return [weight / sum(weights) for weight in weights]


NEAR = [0.9, 0.7, 0.65, 0.4]


@pytest.mark.parametrize("name", ["log_rank", "simans", "simans_laplace", "hardness"])
def test_one_and_two_draws_have_their_exact_probabilities(name: str) -> None:
    config = SamplerConfig(name)
    p = probabilities(config, NEAR, 0.8)
    many = Pool(np.tile(np.array(NEAR, np.float32), (DRAWS, 1)), np.ones((DRAWS, 4), np.bool_), np.full(DRAWS, 0.8))
    pairs, _ = draw(log_weights(many, config), 2, gumbel(name, np.arange(DRAWS)[:, None], np.arange(4)[None]))
    for one, other in permutations(range(4), 2):
        assert close(int((pairs[:, 0] == one).sum()), p[one])
        both = (pairs[:, 0] == one) & (pairs[:, 1] == other)
        assert close(int(both.sum()), p[one] * p[other] / (1 - p[one]))


def mean_gap(config: SamplerConfig, scores: NDArray[np.float32], positive: float, k: int) -> float:
    """Return the mean of s⁺ − s over the draws of many queries of the same pool."""
    queries = 2000
    many = Pool(np.tile(scores, (queries, 1)), np.ones((queries, len(scores)), np.bool_), np.full(queries, positive))
    noise = gumbel("gap", np.arange(queries)[:, None], np.arange(len(scores))[None])
    columns, _ = draw(log_weights(many, config), k, noise)
    return float(positive - scores[columns].mean())


@pytest.mark.parametrize("b", [0.5, 1.0, 2.0])
def test_the_draws_of_simans_lie_b_below_the_positive_and_those_of_uniform_do_not(b: float) -> None:
    """SimANS's observable. The pool reaches as far above s⁺ − b as below it, so that the mean of its bell is b."""
    scores = np.linspace(2.0, -8.0, 400, dtype=np.float32)
    sharp = SamplerConfig("simans", a=4.0, b=b, standardize=False)
    assert mean_gap(sharp, scores, 1.0, k=1) == pytest.approx(b, abs=0.05)
    assert mean_gap(SamplerConfig("uniform"), scores, 1.0, k=1) == pytest.approx(4.0, abs=0.2)
    # Standardised, b counts the pool's standard deviations: 10/√12.
    unit = 10 / math.sqrt(12)
    assert mean_gap(replace(sharp, a=40.0, standardize=True), scores, 1.0, k=1) == pytest.approx(b * unit, abs=0.1)


def test_raw_cosines_are_all_but_uniform_and_standardised_ones_are_not() -> None:
    """Why scores are standardised by default."""
    scores = np.linspace(0.80, 0.70, 100, dtype=np.float32)
    raw = log_weights(
        Pool(scores[None], np.ones((1, 100), np.bool_), np.array([0.8])), SamplerConfig("simans", standardize=False)
    )
    own = log_weights(Pool(scores[None], np.ones((1, 100), np.bool_), np.array([0.8])), SamplerConfig("simans"))
    assert np.ptp(raw) < 0.01 and np.ptp(own) > 3


def test_weights_far_from_the_positive_never_underflow() -> None:
    """The authors' code takes exp() of them: every weight is 0 there."""
    far = pool([[-1e4, -2e4, -3e4]], [1e4])
    weights = log_weights(far, SamplerConfig("simans", standardize=False))
    assert np.isfinite(weights).all() and (np.exp(weights) == 0).all()
    columns, mask = draw(weights, 2, gumbel("far", np.arange(3)[None]))
    assert columns.tolist() == [[0, 1]] and mask.all()


def test_an_unknown_sampler_is_answered_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"sampler.name = 'unifrom': choose one of top, uniform"):
        SamplerConfig("unifrom")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"name": "uniform", "a": 1.0}, r"sampler\.a = 1\.0: uniform does not use it, simans would"),
        ({"name": "simans", "tau": 1.0}, r"sampler\.tau = 1\.0: simans does not use it, simans_laplace would"),
        ({"name": "top", "standardize": False}, r"sampler\.standardize = False: top does not use it"),
        ({"name": "simans", "b": math.inf}, r"sampler\.b = inf: write a finite number"),
        ({"name": "simans", "a": 0.0}, r"sampler\.a = 0\.0: write a number above 0"),
        ({"name": "simans_laplace", "tau": -1.0}, r"sampler\.tau = -1\.0: write a number above 0"),
    ],
)
def test_a_knob_that_does_not_fit_is_named(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplerConfig(**knobs)


def test_a_knob_written_as_its_default_changes_nothing() -> None:
    assert SamplerConfig("simans").knobs == SamplerConfig("simans", a=0.5, b=0.0, standardize=True).knobs
