import numpy as np
import pytest

from indexer.flips import flipped
from indexer.gate import Pairs, judge


@pytest.mark.parametrize("seed", range(5))
def test_flips_are_those_that_a_person_would_count(seed: int) -> None:
    now, before = np.random.default_rng(seed).choice([0.0, 0.0, 0.3, 1.0], (2, 50)).astype(np.float32)
    expected = [row for row in range(50) if before[row] != 0 and now[row] == 0]
    assert np.flatnonzero(flipped(now, before)).tolist() == expected != []
    assert not flipped(now, now).any()


def test_what_was_not_measured_has_not_flipped() -> None:
    figures = np.array([np.nan, 1, np.nan, 0], np.float32)
    assert not flipped(figures, np.array([1, np.nan, np.nan, 0], np.float32)).any()


def test_the_gate_counts_the_same() -> None:
    now, before = np.random.default_rng(7).choice([0.0, 0.5], (2, 40)).astype(np.float32)
    verdict = judge({"dev": {}}, {"dev": {}}, None, Pairs(now, before))
    (check,) = [check for check in verdict.checks if check.name == "flips"]
    assert check.reason.startswith(f"{flipped(now, before).sum()} of 40 dev queries")
