import numpy as np
import pytest

import miner.counter_hash
from miner.counter_hash import BITS_64, counter_hash, gumbel, uniform

ROWS = np.arange(200_000, dtype=np.int32)


def test_the_finaliser_is_splitmix64() -> None:
    # The first three outputs of splitmix64.c with state 0; its state grows by the golden ratio before each.
    golden = 0x9E3779B97F4A7C15
    states = np.array([0, golden, 2 * golden & BITS_64], np.uint64)
    # The first word meets an empty state, so that it stands for the generator's state itself.
    assert counter_hash(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_uniform_fills_the_unit_interval_evenly() -> None:
    values = uniform(13, 2, 0, ROWS)
    assert values.min() > 0 and values.max() < 1
    counts, _ = np.histogram(values, bins=100, range=(0, 1))
    expected = len(ROWS) / 100
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 150  # 99 degrees of freedom: above 150 once in a thousand keys


@pytest.mark.parametrize(
    "neighbour",
    [uniform(14, 2, 0, ROWS), uniform(13, 3, 0, ROWS), uniform(13, 2, 1, ROWS), uniform(13, 2, 0, ROWS + 1)],
    ids=["seed", "set", "epoch", "row"],
)
def test_neighbouring_words_give_independent_noise(neighbour: np.ndarray) -> None:
    values = uniform(13, 2, 0, ROWS)
    assert abs(np.corrcoef(values, neighbour)[0, 1]) < 4 / np.sqrt(len(ROWS))


def test_the_extreme_hashes_stay_inside_the_open_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miner.counter_hash, "counter_hash", lambda *words: np.array([0, BITS_64], np.uint64))
    smallest, largest = uniform(0)
    assert smallest > 0 and largest < 1
    assert np.isfinite(gumbel(0)).all()


def test_gumbel_has_the_mean_and_variance_of_its_distribution() -> None:
    noise = gumbel(5, ROWS)
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.01)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.03)


def test_a_value_depends_on_its_own_words_alone() -> None:
    queries, passages = np.array([[3], [8]], np.int32), np.array([[1, 4, 9], [4, 2, 7]], np.int32)
    together = uniform("negatives", 1, queries, passages)
    alone = uniform("negatives", 1, queries[1:], passages[1:, ::-1])
    np.testing.assert_array_equal(together[1:, ::-1], alone)
    assert together[0, 1] != together[1, 0]  # the same passage for another query


def test_words_do_not_run_into_each_other() -> None:
    row = np.array([7])
    seen = [counter_hash(*words)[0] for words in [(1, 2, row), (2, 1, row), (12, row), (1, 2, 0, row), ("1", 2, row)]]
    assert len(set(seen)) == len(seen)


def test_seeds_of_any_size_and_pads_are_words() -> None:
    values = uniform(-1, 1 << 80, np.array([-1, 0], np.int32))
    assert values.shape == (2,) and values[0] != values[1]
