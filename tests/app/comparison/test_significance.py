import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.comparison.significance import holm, randomisation_p, t_cdf, t_interval, t_quantile


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (5, 2.570582), (10, 2.228139), (30, 2.042272)],
)
def test_quantiles_are_those_of_the_printed_tables(freedom: int, expected: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 12])
def test_the_distribution_is_the_integral_of_its_density(freedom: int) -> None:
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    width, total = 1e-3, 0.5
    for number in range(2000):
        total += width * scale * (1 + ((number + 0.5) * width) ** 2 / freedom) ** (-(freedom + 1) / 2)
    assert t_cdf(2.0, freedom) == pytest.approx(total, abs=1e-6)
    assert t_cdf(-2.0, freedom) == pytest.approx(1 - total, abs=1e-6)


def test_an_interval_of_three_seeds() -> None:
    values = [0.48, 0.50, 0.46]
    middle = sum(values) / 3
    deviation = math.sqrt(sum((value - middle) ** 2 for value in values) / 2)
    half = 4.302653 * deviation / math.sqrt(3)
    assert t_interval(values) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert t_interval([0.48]) is None
    assert t_interval([0.5, 0.5]) == (0.5, 0.5)


def exact_p(differences: list[float]) -> float:
    """All flips of sign, one by one."""
    observed = abs(sum(differences))
    flips = list(itertools.product((-1, 1), repeat=len(differences)))
    extreme = sum(
        abs(sum(sign * d for sign, d in zip(flip, differences, strict=True))) >= observed - 1e-12 for flip in flips
    )
    return extreme / len(flips)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.4])
def test_random_flips_come_near_all_flips(shift: float) -> None:
    generator = random.Random(3)
    differences = [generator.gauss(shift, 0.3) for _ in range(10)]
    p = randomisation_p(np.array(differences), 20_000, seed=1)
    assert p == pytest.approx(exact_p(differences), abs=0.015)


def test_the_test_is_two_sided_repeatable_and_never_zero() -> None:
    differences = np.array([0.2, 0.3, 0.1, 0.4, 0.25, 0.2, 0.1, 0.3, 0.5, 0.2, 0.3, 0.4, 0.2, 0.3])
    p = randomisation_p(differences, 999, seed=1)
    assert p == randomisation_p(-differences, 999, seed=1) == randomisation_p(differences, 999, seed=1)
    assert 1 / 1000 <= p < 0.01
    assert randomisation_p(np.zeros(5), 999, seed=1) == 1.0
    assert randomisation_p(np.append(differences, np.zeros(50)), 999, seed=1) < 0.01, "ties take no part"


def test_queries_that_do_not_differ_are_seldom_called_different() -> None:
    generator = np.random.default_rng(5)
    found = [randomisation_p(generator.normal(0, 1, 30), 400, seed=number) < 0.05 for number in range(300)]
    assert 0.02 < sum(found) / len(found) < 0.09


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({"only": 0.02}) == {"only": 0.02} and holm({}) == {}


@given(st.dictionaries(st.text(), st.floats(0, 1), max_size=6))
def test_holm_never_lowers_a_value_nor_changes_the_order(p_values: dict[str, float]) -> None:
    corrected = holm(p_values)
    assert list(corrected) == list(p_values)
    for name, p in p_values.items():
        assert p <= corrected[name] <= 1
        assert all(corrected[name] <= corrected[other] for other, q in p_values.items() if p < q)
