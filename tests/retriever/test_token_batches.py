import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.token_batches import bucketed, shared_budget, token_batches

LENGTHS = st.lists(st.integers(0, 60), max_size=50)
BUDGETS = st.integers(1, 200)


@given(LENGTHS, BUDGETS)
def test_every_text_is_in_one_batch(lengths: list[int], budget: int) -> None:
    batches = token_batches(np.array(lengths, np.int64), budget)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) for batch in batches)


@given(LENGTHS, BUDGETS)
def test_a_batch_with_its_padding_stays_within_the_budget(lengths: list[int], budget: int) -> None:
    for batch in token_batches(np.array(lengths, np.int64), budget):
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget


@given(LENGTHS, BUDGETS)
def test_the_longest_come_first(lengths: list[int], budget: int) -> None:
    batches = token_batches(np.array(lengths, np.int64), budget)
    in_order = [lengths[i] for batch in batches for i in batch]
    assert in_order == sorted(lengths, reverse=True)


@given(LENGTHS, BUDGETS)
def test_no_batch_could_take_the_next_text_as_well(lengths: list[int], budget: int) -> None:
    batches = token_batches(np.array(lengths, np.int64), budget)
    for batch in batches[:-1]:
        longest = max(1, lengths[batch[0]])
        assert (len(batch) + 1) * longest > budget


def test_a_text_beyond_the_budget_goes_alone() -> None:
    batches = token_batches(np.array([3, 100, 3]), 10)
    assert [batch.tolist() for batch in batches] == [[1], [0, 2]]


@pytest.mark.parametrize("budget", [1, 100])
def test_no_text_is_no_batch(budget: int) -> None:
    assert token_batches(np.array([], np.int64), budget) == []


def test_few_tokens_are_shared_among_streams() -> None:
    """Each of two streams gets two batches, unless they would be tiny; of many tokens a batch has the most."""
    assert [shared_budget(tokens, 2, 64, 1024) for tokens in (10, 256, 480, 4000, 40_000)] == [64, 64, 120, 1000, 1024]
    assert shared_budget(480, 1, 64, 1024) == 1024, "one stream gains nothing"


# ---- micro-batches of buckets

PARTS = st.integers(1, 4)
SOME = st.lists(st.integers(1, 60), min_size=1, max_size=50)


@given(SOME, BUDGETS, PARTS)
def test_every_text_is_in_one_bucket_with_others_of_like_length(lengths: list[int], budget: int, parts: int) -> None:
    batches = bucketed(np.array(lengths, np.int64), budget, parts)
    assert sorted(int(i) for batch in batches for bucket in batch for i in bucket) == list(range(len(lengths)))
    for bucket in (bucket for batch in batches for bucket in batch):
        own = [lengths[i] for i in bucket]
        assert own == sorted(own, reverse=True)
        assert min(own) * 8 >= max(own) * 7


@given(SOME, BUDGETS, PARTS)
def test_micro_batches_have_about_as_many_tokens(lengths: list[int], budget: int, parts: int) -> None:
    batches = bucketed(np.array(lengths, np.int64), budget, parts)
    tokens = [sum(lengths[i] for bucket in batch for i in bucket) for batch in batches]
    count = parts * -(-sum(lengths) // (parts * budget))
    assert len(batches) <= count
    assert max(tokens) <= sum(lengths) / count + 2 * max(lengths)
    if max(lengths) * count < sum(lengths):  # no text is longer than a micro-batch's fair share
        assert len(batches) == count
