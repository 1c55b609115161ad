import numpy as np
import pytest

from indexer.drift import fit_drift
from retriever.protocols import FloatArray
from tests.indexer.planted import unit_rows

DIM = 12


def turned(vectors: FloatArray, seed: int, angle: float = 0.3) -> FloatArray:
    """``vectors`` after a random linear map near the identity, at length 1 again."""
    matrix = np.eye(DIM) + angle * np.random.default_rng(seed).standard_normal((DIM, DIM)) / np.sqrt(DIM)
    moved = vectors @ matrix + 0.1
    return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True), np.float32)


def cosine(one: FloatArray, other: FloatArray) -> float:
    return float(np.mean((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)))


def test_a_linear_drift_is_found_and_holds_for_passages_outside_the_sample() -> None:
    before = unit_rows(2000, DIM)
    after = turned(before, 1)
    drift = fit_drift(before[:1000], after[:1000])
    mapped = drift(before[1000:])
    assert mapped.dtype == np.float32
    assert cosine(mapped, after[1000:]) > 0.995 > cosine(before[1000:], after[1000:]) + 0.01
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1, atol=1e-6)
    assert drift.cosine_mapped == pytest.approx(cosine(mapped, after[1000:]), abs=0.002)
    assert drift.cosine_before == pytest.approx(cosine(before[1000:], after[1000:]), abs=0.01)


def test_where_nothing_moved_nothing_is_moved() -> None:
    vectors = unit_rows(200, DIM)
    drift = fit_drift(vectors, vectors)
    np.testing.assert_allclose(drift(vectors), vectors, atol=1e-6)
    assert drift.cosine_mapped == pytest.approx(1) == drift.cosine_before


def test_a_movement_that_cannot_be_told_from_the_vectors_leaves_them_where_they_are() -> None:
    before = unit_rows(30, DIM)
    noise = 0.8 * unit_rows(30, DIM, seed=9)
    drift = fit_drift(before, before + noise - noise.mean(axis=0))
    assert drift.cosine_mapped >= drift.cosine_before


def test_lengths_that_carry_meaning_are_kept() -> None:
    before = 3 * unit_rows(400, DIM) * np.linspace(1, 2, 400, dtype=np.float32)[:, None]
    drift = fit_drift(before, before * 2)
    np.testing.assert_allclose(drift(before), before * 2, atol=0.05)


@pytest.mark.parametrize("sample", [1, 2, 4, 6])
def test_a_handful_of_passages_is_enough_to_go_on(sample: int) -> None:
    before = unit_rows(50, DIM)
    drift = fit_drift(before[:sample], turned(before, 1)[:sample])
    assert np.isfinite(drift(before)).all() and drift.cosine_mapped >= drift.cosine_before - 1e-9
