"""Whitening against its definition, on vectors in several shards."""

from pathlib import Path

import numpy as np
import pytest

from indexer.shards import Vectors
from indexer.whitening import fit_whitening, moments
from retriever.errors import InputError
from retriever.protocols import FloatArray


def shards(folder: Path, vectors: FloatArray, rows: int = 100) -> Vectors:
    paths = []
    for first in range(0, len(vectors), rows):
        paths.append(folder / f"{first:05d}.npy")
        np.save(paths[-1], vectors[first : first + rows])
    return Vectors(paths)


@pytest.fixture
def plain() -> FloatArray:
    """950 correlated vectors far off the origin, in which sums in float32 would lose digits."""
    generator = np.random.default_rng(3)
    return (generator.normal(size=(950, 8)) @ generator.normal(size=(8, 8)) + 50).astype(np.float32)


def test_moments_are_numpy_s_whatever_the_shards(tmp_path: Path, plain: FloatArray) -> None:
    mean, covariance = moments(shards(tmp_path, plain))
    whole = plain.astype(np.float64)
    np.testing.assert_allclose(mean, whole.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(whole.T, bias=True), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dimensions", [None, 8, 3])
def test_whitened_vectors_have_mean_nought_and_identity_covariance(
    tmp_path: Path, plain: FloatArray, dimensions: int | None
) -> None:
    whitening = fit_whitening(shards(tmp_path, plain), dimensions, normalize=False)
    found = whitening(plain).astype(np.float64)
    width = dimensions or 8
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(found.T, bias=True), np.eye(width), atol=1e-3)


def test_kept_are_the_directions_of_most_variance(tmp_path: Path) -> None:
    spread = np.array([1, 9, 3, 5], np.float32)
    plain = np.random.default_rng(0).normal(size=(2000, 4)).astype(np.float32) * spread
    matrix = fit_whitening(shards(tmp_path, plain), 2, normalize=False).matrix
    assert np.abs(matrix).argmax(axis=1).tolist() == [1, 3]
    assert (matrix[[0, 1], [1, 3]] > 0).all(), "an axis has one sign, on whatever machine"


def test_zca_scores_no_pair_differently(tmp_path: Path, plain: FloatArray) -> None:
    ours = fit_whitening(shards(tmp_path, plain), None, normalize=False)(plain[:20])
    mean, covariance = moments(Vectors(sorted(tmp_path.glob("*.npy"))))
    variances, axes = np.linalg.eigh(covariance)
    zca = (plain[:20] - mean) @ (axes / np.sqrt(variances) @ axes.T)
    np.testing.assert_allclose(ours @ ours.T, zca @ zca.T, atol=1e-2)


def test_lengths_are_one_where_asked_and_shards_are_mapped_alike(tmp_path: Path, plain: FloatArray) -> None:
    vectors = shards(tmp_path, plain)
    whitening = fit_whitening(vectors, 5, normalize=True)
    mapped = whitening.shards(vectors, tmp_path / "mapped")
    assert (len(mapped), mapped.dimensions) == (950, 5)
    np.testing.assert_allclose(mapped.gather(np.arange(950)), whitening(plain), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(whitening(plain), axis=1), 1, atol=1e-5)


def test_directions_without_variance_are_not_blown_up(tmp_path: Path, plain: FloatArray) -> None:
    plain[:, 5] = plain[:, 4]
    assert len(fit_whitening(shards(tmp_path, plain), None, normalize=False).bias) == 7
    with pytest.raises(InputError, match="--dimensions 8: the 950 vectors vary in 7 directions"):
        fit_whitening(Vectors(sorted(tmp_path.glob("*.npy"))), 8, normalize=False)
    still = np.ones((10, 4), np.float32)
    (tmp_path / "still").mkdir()
    with pytest.raises(InputError, match="--dimensions 0: the 10 vectors vary in 0"):
        fit_whitening(shards(tmp_path / "still", still), None, normalize=False)
