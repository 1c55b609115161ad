import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.batch_plans import RandomPlan
from retriever.errors import InputError


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
    with pytest.raises(InputError, match=rf"batch_size = {batch_size}: write a number from 1 to 10"):
        RandomPlan(10, batch_size, seed=1)
