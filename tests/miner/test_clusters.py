import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.clusters import balanced_clusters
from retriever.protocols import FloatArray


def bank(rows: int, topics: int, seed: int = 0, noise: float = 0.2) -> FloatArray:
    """Return embeddings of which row i lies near topic i modulo ``topics``."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((topics, 24))
    vectors = centres[np.arange(rows) % topics] + noise * generator.standard_normal((rows, 24))
    unit: FloatArray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


@given(st.integers(1, 70), st.integers(1, 9), st.integers(0, 4))
def test_every_row_is_in_one_cluster(rows: int, size: int, seed: int) -> None:
    order = balanced_clusters(bank(rows, 5), size, seed)
    assert order.dtype == np.int32 and sorted(order.tolist()) == list(range(rows))


def test_rows_that_lie_together_are_put_together() -> None:
    vectors = bank(128, topics=16)
    order = balanced_clusters(vectors, 8, seed=1)
    clusters = [{row % 16 for row in order[place : place + 8].tolist()} for place in range(0, 128, 8)]
    assert sum(len(topics) == 1 for topics in clusters) >= 12
    similarity = [
        np.mean(vectors[order[place : place + 8]] @ vectors[order[place : place + 8]].T) for place in range(0, 128, 8)
    ]
    assert np.mean(similarity) > np.mean(vectors @ vectors.T) + 0.5


def test_clusters_are_a_function_of_bank_and_seed() -> None:
    vectors = bank(60, 7, noise=1.0)
    np.testing.assert_array_equal(balanced_clusters(vectors, 4, 1), balanced_clusters(vectors.copy(), 4, 1))
    assert balanced_clusters(vectors, 4, 1).tolist() != balanced_clusters(vectors, 4, 2).tolist()


@pytest.mark.parametrize("size", [2, 4])
def test_rows_not_met_yet_and_rows_that_are_equal_do_no_harm(size: int) -> None:
    vectors = np.zeros((11, 24), np.float32)
    vectors[:5] = bank(5, 1)[0]
    order = balanced_clusters(vectors, size, seed=1)
    assert sorted(order.tolist()) == list(range(11))
