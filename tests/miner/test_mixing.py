from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.batch_plans import RandomPlan
from miner.mixing import MixConfig, MixedPlan, parts
from retriever.errors import InputError

SETS = ["big"] * 60 + ["small"] * 12


def counts(config: MixConfig, epoch: int = 0) -> Counter[str]:
    plan = MixedPlan(SETS, config, 4, seed=1).plan(epoch)
    return Counter(SETS[batch[0]] for batch in plan)


def test_each_batch_is_of_one_data_set_and_holds_no_query_twice() -> None:
    mixed = MixedPlan(SETS, MixConfig("temperature:3"), 4, seed=1)
    for epoch in range(3):
        plan = mixed.plan(epoch)
        assert plan.shape == RandomPlan(len(SETS), 4, 1).plan(0).shape
        for batch in plan:
            assert len({SETS[row] for row in batch}) == 1 and len(set(batch.tolist())) == 4


def test_shares_are_those_of_sizes_temperatures_and_weights() -> None:
    assert counts(MixConfig()) == {"big": 15, "small": 3}
    root = counts(MixConfig("temperature:2"))
    assert root["small"] / root["big"] == pytest.approx((12 / 60) ** 0.5, abs=0.1)
    assert counts(MixConfig("weights", {"big": 1, "small": 1})) == {"big": 9, "small": 9}


def test_a_data_set_goes_through_its_queries_evenly_over_the_epochs() -> None:
    mixed = MixedPlan(SETS, MixConfig("weights", {"big": 1, "small": 2}), 4, seed=1)
    drawn = Counter(int(row) for epoch in range(10) for row in mixed.plan(epoch).ravel())
    for name in ("big", "small"):
        own = [drawn[row] for row in range(len(SETS)) if SETS[row] == name]
        assert max(own) - min(own) <= 1
    assert not np.array_equal(mixed.plan(0), mixed.plan(1))
    assert np.array_equal(mixed.plan(1), MixedPlan(SETS, MixConfig("weights", {"big": 1, "small": 2}), 4, 1).plan(1))


@given(st.integers(1, 200), st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_parts_sum_up_and_none_is_empty(total: int, shares: list[float]) -> None:
    if total < len(shares):
        with pytest.raises(InputError, match="cannot hold"):
            parts(total, shares)
        return
    found = parts(total, shares)
    assert sum(found) == total and min(found) >= 1
    exact = [total * share / sum(shares) for share in shares]
    if min(exact) >= 1:
        assert all(abs(one - wanted) < 1 for one, wanted in zip(found, exact, strict=True))
    else:
        assert sorted(found) == [one for _, one in sorted(zip(exact, found, strict=True))]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"by": "luck"}, "write"),
        ({"by": "temperature:0"}, "write"),
        ({"by": "temperature:0.001"}, r"at least 0\.05"),
        ({"by": "weights"}, "belong together"),
        ({"weights": {"big": 1.0}}, "belong together"),
        ({"by": "weights", "weights": {"big": 0.0, "small": 1.0}}, "above 0"),
        ({"by": "weights", "weights": {"big": float("inf"), "small": 1.0}}, "finite"),
    ],
)
def test_what_is_no_mix_is_refused(config: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        MixConfig(**config)  # type: ignore[arg-type]  # on purpose


def test_data_sets_must_be_named_and_fill_a_batch() -> None:
    with pytest.raises(InputError, match="data sets are"):
        MixedPlan(SETS, MixConfig("weights", {"big": 1, "other": 1}), 4, 1)
    with pytest.raises(InputError, match="'small' has only 12"):
        MixedPlan(SETS, MixConfig(), 16, 1)
