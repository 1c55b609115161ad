import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from app.comparison.significance import t_quantile
from app.seed_variance import left_out_gaps, seed_findings, seed_variance

FIGURES = {
    "a": {1: np.array([0.0, 1.0, 0.5, 0.4]), 2: np.array([1.0, 1.0, 0.5, 0.6]), 3: np.array([0.0, 1.0, 0.5, 0.5])},
    "b": {1: np.array([0.5, 0.0, 0.5, 0.5]), 2: np.array([1.0, 0.0, 0.5, 0.5])},
    "single": {1: np.array([0.1, 0.2, 0.3, 0.4])},
}


def test_a_gap_must_exceed_what_the_pooled_spread_of_seeds_explains() -> None:
    report = seed_variance(FIGURES)
    assert report is not None and report.queries == 4
    means = {name: [float(one.mean()) for one in of.values()] for name, of in FIGURES.items()}
    squares = sum((x - np.mean(of)) ** 2 for name, of in means.items() if name != "single" for x in of)
    pooled = math.sqrt(squares / 3)  # 2 + 1 degrees of freedom
    assert report.pooled == pytest.approx(pooled)
    assert report.least_gap_single == pytest.approx(t_quantile(0.975, 3) * pooled * math.sqrt(2))
    assert report.least_gap == pytest.approx(t_quantile(0.975, 3) * pooled), "of two seeds each, the fewest there are"


def test_queries_that_vary_and_flip_are_counted() -> None:
    report = seed_variance(FIGURES)
    assert report is not None
    a, b, single = report.systems
    assert (a.seeds, a.varying, a.flipping, b.varying, b.flipping) == (3, 2, 1, 1, 0)
    assert a.spread == pytest.approx(np.std([0.475, 0.775, 0.5], ddof=1))
    assert (single.seeds, single.spread, single.query_spread, single.varying) == (1, None, None, 0)
    assert report.flips.tolist() == [1, 0, 0, 0]
    found = seed_findings(report, FIGURES, ["w", "x", "y", "z"])
    assert [(one.query, one.flagged) for one in found] == [("w", True), ("z", False)]
    assert "a 0.00, 1.00, 0.00; b 0.50, 1.00" in found[0].reason and "single" not in found[0].reason


def test_one_seed_tells_nothing_of_seeds() -> None:
    assert seed_variance({"a": {1: np.array([0.5])}, "b": {}}) is None


def test_seeds_that_agree_leave_no_gap_unexplained() -> None:
    same = {"a": {1: np.array([0.5, 0.1]), 2: np.array([0.5, 0.1])}}
    report = seed_variance(same)
    assert report is not None and report.least_gap == 0 and seed_findings(report, same, ["x", "y"]) == []


def test_a_data_set_is_left_out_on_the_rest_alone() -> None:
    generator = np.random.default_rng(3)
    base = {seed: generator.uniform(0.3, 0.5, 200) for seed in (1, 2, 3)}
    rest = np.arange(200) >= 100
    better = {seed: values + np.where(rest, generator.normal(0.05, 0.01, 200), -0.3) for seed, values in base.items()}

    def gap(all_of: Mapping[int, Any], *without: Mapping[int, Any]) -> dict[str, Any]:
        names = [str(number) for number in range(len(without))]
        found = left_out_gaps(all_of, dict(zip(names, without, strict=True)), dict.fromkeys(names, rest))
        return dict(found["0"])

    found = gap(base, better)
    assert found["gap"] == pytest.approx(0.05, abs=0.005) and (found["verdict"], found["seeds"]) == ("better", 3)
    worse = gap(better, base)
    assert worse["verdict"] == "worse" and worse["gap"] == pytest.approx(-found["gap"])
    one = gap({1: base[1]}, better)
    assert (one["verdict"], one["seeds"]) == ("one seed", 1)
    noisy = {seed: values + generator.normal(0.002, 0.01, 200) for seed, values in base.items()}
    alone, among = gap(base, noisy)["p"], gap(base, noisy, noisy, noisy, noisy)["p"]
    assert among == pytest.approx(min(1, 4 * alone)), "four data sets are four tests"
