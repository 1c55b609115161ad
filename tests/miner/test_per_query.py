from pathlib import Path

import numpy as np
import pytest

from miner.per_query import PerQueryConfig, PerQueryPool
from retriever.errors import InputError
from retriever.negatives import NegativeSet, Verdict
from retriever.protocols import WatchingSource

QUERIES, DEPTH, COUNT = 4, 9, 2
ROWS = np.arange(QUERIES, dtype=np.int32)
CONFIG = PerQueryConfig(drop=0.13, below=0.8, first=3)


def pool() -> NegativeSet:
    """Query q's candidates are 10·q, 10·q + 1 …; the first is a positive, query 3 has three eligible ones alone."""
    passages = (10 * ROWS[:, None] + np.arange(DEPTH)).astype(np.int32)
    verdicts = np.full((QUERIES, DEPTH), Verdict.ELIGIBLE, np.uint8)
    verdicts[:, 0] = Verdict.POSITIVE
    verdicts[3, 4:] = Verdict.FILTERED
    return NegativeSet(
        queries=ROWS,
        passages=passages,
        scores=np.linspace(0.9, 0.1, DEPTH, dtype=np.float32) + np.zeros((QUERIES, 1), np.float32),
        sources=np.where(passages % 2, np.uint8(1), np.uint8(8)),
        verdicts=verdicts,
        positives=passages[:, :1],
        positive_scores=np.ones((QUERIES, 1), np.float32),
        dropped=np.zeros(QUERIES, np.bool_),
        mined_from=np.zeros(QUERIES, np.int32),
    )


def source() -> PerQueryPool:
    return PerQueryPool(pool(), CONFIG, COUNT)


def drawn(one: PerQueryPool) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(one.draw(ROWS, 0).rows, one.draw(ROWS, 0).mask, strict=True)]


def test_a_query_begins_with_its_best_and_keeps_them() -> None:
    one = source()
    first = drawn(one)
    assert first == [[1, 2], [11, 12], [21, 22], [31, 32]]
    for _ in range(3):
        one.observe(ROWS, np.full(QUERIES, 0.6, np.float32))
        assert drawn(one) == first


def test_a_draw_says_who_brought_it() -> None:
    one = source().draw(np.array([1, 3], np.int32), 0)
    assert one.sources is not None and one.sources.tolist() == [[1, 8], [1, 8]]


def test_only_decayed_queries_are_replaced() -> None:
    one = source()
    one.observe(ROWS, np.array([0.6, 0.6, -0.5, 0.95], np.float32))
    # .52 is 13.3 % lower, .53 is 11.7 %; −.56 is 12 % of |s| lower; .81 has fallen but is not below .8
    one.observe(ROWS, np.array([0.52, 0.53, -0.56, 0.81], np.float32))
    assert drawn(one) == [[4, 5], [11, 12], [21, 22], [31, 32]]
    one.observe(ROWS, np.array([0.5, 0.5, -0.57, 0.79], np.float32))
    # 0 is compared with what it scored after its assignment; 3 has but three eligible ones: its last two
    assert drawn(one) == [[4, 5], [14, 15], [24, 25], [32, 33]]


def test_each_time_brings_the_next_ranks_until_the_pool_ends() -> None:
    one, found = source(), []
    for _ in range(4):
        found.append(drawn(one)[0])
        one.observe(ROWS[:1], np.array([0.6], np.float32))
        one.observe(ROWS[:1], np.array([0.3], np.float32))
    assert found == [[1, 2], [4, 5], [6, 7], [7, 8]]


def test_a_query_that_had_no_negative_is_left_alone() -> None:
    one = source()
    for _ in range(3):
        one.observe(ROWS[:1], np.array([np.nan], np.float32))
    assert drawn(one)[0] == [1, 2]


def test_the_state_survives_a_checkpoint(tmp_path: Path) -> None:
    one = source()
    one.observe(ROWS, np.full(QUERIES, 0.6, np.float32))
    one.observe(ROWS[:2], np.full(2, 0.3, np.float32))
    one.save(tmp_path)
    other = source()
    assert isinstance(other, WatchingSource)
    assert other.restore(tmp_path)
    assert drawn(other) == drawn(one) != drawn(source())
    for each in (one, other):
        each.observe(ROWS, np.full(QUERIES, 0.4, np.float32))
    assert drawn(other) == drawn(one)
    assert not other.restore(tmp_path / "none")


@pytest.mark.parametrize("keys", [{"drop": 0.0}, {"below": -1.0}, {"first": -1}])
def test_what_cannot_be_is_refused(keys: dict[str, float]) -> None:
    with pytest.raises(InputError, match="per_query"):
        PerQueryConfig(**keys)  # type: ignore[arg-type]  # numbers of either kind
