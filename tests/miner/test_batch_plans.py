from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.batch_plans import BatchPlanConfig, ClusterPlan, RandomPlan, StoredPlan
from miner.communities import B3
from retriever.errors import InputError
from retriever.protocols import BatchPlanner
from tests.miner.test_clusters import bank


@given(st.integers(1, 60), st.data(), st.integers(0, 3))
def test_an_epoch_has_every_query_and_a_batch_has_none_twice(queries: int, data: st.DataObject, epoch: int) -> None:
    batch_size = data.draw(st.integers(1, queries))
    plan = RandomPlan(queries, batch_size, seed=5).plan(epoch)
    assert plan.dtype == np.int32 and plan.shape == (-(-queries // batch_size), batch_size)
    assert sorted(plan.ravel()[:queries].tolist()) == list(range(queries))
    assert all(len(set(batch)) == batch_size for batch in plan.tolist())


def test_a_plan_is_a_function_of_seed_and_epoch() -> None:
    plan = RandomPlan(50, 8, seed=5)
    np.testing.assert_array_equal(plan.plan(3), RandomPlan(50, 8, seed=5).plan(3))
    assert plan.plan(3).tolist() != plan.plan(4).tolist()
    assert plan.plan(3).tolist() != RandomPlan(50, 8, seed=6).plan(3).tolist()


def test_each_query_reaches_each_place_equally_often() -> None:
    plan = RandomPlan(4, 4, seed=1)
    places = np.zeros((4, 4))
    for epoch in range(4000):
        places[plan.plan(epoch)[0], np.arange(4)] += 1
    assert np.abs(places - 1000).max() < 4 * np.sqrt(4000 * 0.25 * 0.75)


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_that_cannot_be_filled_is_refused(batch_size: int) -> None:
    with pytest.raises(InputError, match=rf"batch_size = {batch_size}: write 1 to 10"):
        RandomPlan(10, batch_size, seed=1)


def test_a_stored_plan_shuffles_its_batches_and_nothing_else() -> None:
    batches = np.arange(40, dtype=np.int32).reshape(10, 4)
    plan: BatchPlanner = StoredPlan(batches, number=3, seed=5)
    epochs = [plan.plan(epoch).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == batches.tolist() for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert plan.plan(0).tolist() == epochs[0] != StoredPlan(batches, 4, 5).plan(0).tolist()
    assert epochs[0] != StoredPlan(batches, 3, 6).plan(0).tolist()


def test_clusters_double_up_to_what_divides_the_batch() -> None:
    plan = ClusterPlan(100, 24, double_every=2, seed=1)
    assert [plan.cluster_size(epoch) for epoch in (0, 1, 2, 3, 4, 6, 7, 8, 500)] == [1, 1, 2, 2, 4, 8, 8, 8, 8]
    assert ClusterPlan(100, 32, 1, 1).cluster_size(9) == 32


@given(st.integers(1, 10), st.integers(0, 8), st.data())
def test_a_plan_of_clusters_has_the_shape_of_a_random_one(half: int, epoch: int, data: st.DataObject) -> None:
    batch_size = 2 * half
    queries = data.draw(st.integers(batch_size, 70))
    plan = ClusterPlan(queries, batch_size, 1, seed=1).plan(epoch, bank(queries, 5))
    assert plan.dtype == np.int32 and plan.shape == RandomPlan(queries, batch_size, 1).plan(0).shape
    assert sorted(plan.ravel()[:queries].tolist()) == list(range(queries))
    assert all(len(set(batch)) == batch_size for batch in plan.tolist())


def test_batches_of_clusters_are_harder_in_later_epochs() -> None:
    """Nothing is encoded for it: the bank is all that a plan reads."""
    vectors = bank(96, topics=12)
    plan: BatchPlanner = ClusterPlan(96, 16, double_every=1, seed=1)

    def similarity(epoch: int) -> float:
        return float(np.mean([np.mean(vectors[batch] @ vectors[batch].T) for batch in plan.plan(epoch, vectors)]))

    assert similarity(0) + 0.05 < similarity(2) < similarity(4) - 0.2
    np.testing.assert_array_equal(plan.plan(3, vectors), plan.plan(3, vectors.copy()))
    assert plan.plan(3, vectors).tolist() != plan.plan(4, vectors).tolist()


def test_without_a_bank_the_plan_of_clusters_is_random() -> None:
    plan, random = ClusterPlan(50, 8, 1, seed=5), RandomPlan(50, 8, seed=5)
    np.testing.assert_array_equal(plan.plan(6), random.plan(6))
    np.testing.assert_array_equal(plan.plan(0, bank(50, 3)), random.plan(0))
    with pytest.raises(ValueError, match="a bank of 49 embeddings where 50 queries are"):
        plan.plan(6, bank(49, 3))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"name": "b4"}, r"\[batches\] name = 'b4': choose one of random, b3, ngame"),
        ({"ranks": 3}, r"\[batches\] ranks = 3: random does not use it, b3 would"),
        ({"name": "b3", "double_every": 3}, r"double_every = 3: b3 does not use it, ngame would"),
        ({"name": "b3", "first_rank": -1}, r"first_rank = -1: write 0 or more"),
        ({"name": "b3", "ranks": 0}, r"ranks = 0: write 1 or more"),
        ({"name": "b3", "community": 1}, r"community = 1: write 2 or more"),
        ({"name": "ngame", "double_every": 0}, r"double_every = 0: write 1 or more"),
    ],
)
def test_a_knob_that_does_not_fit_is_named(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchPlanConfig(**knobs)


@pytest.mark.parametrize(
    ("config", "queries", "batch_size", "message"),
    [
        (BatchPlanConfig("b3"), 31, 32, "community = 32: there are only 31 training queries"),
        (BatchPlanConfig("b3", community=8), 30, 16, "first_rank = 30: only 30 training queries"),
        (BatchPlanConfig("b3"), 100, 48, "community = 32: does not divide .train. batch_size = 48"),
        (BatchPlanConfig("ngame"), 100, 15, "batch_size = 15: ngame fills batches with clusters of 2, 4, 8"),
    ],
)
def test_a_plan_that_the_run_cannot_have_is_refused(
    config: BatchPlanConfig, queries: int, batch_size: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        config.check(queries, batch_size, in_batch=True)


def test_a_plan_for_in_batch_negatives_needs_them() -> None:
    for name in ("b3", "ngame"):
        BatchPlanConfig(name).check(100, 32, in_batch=True)
        with pytest.raises(InputError, match=r"in_batch = false has none"):
            BatchPlanConfig(name).check(100, 32, in_batch=False)
    BatchPlanConfig().check(1, 15, in_batch=False)


def test_mining_plans_batches_for_b3_alone() -> None:
    assert BatchPlanConfig("b3", ranks=50).b3(64) == B3(first_rank=30, ranks=50, community=32, batch_size=64)
    assert BatchPlanConfig("ngame").b3(64) is BatchPlanConfig().b3(64) is None
