from pathlib import Path

import numpy as np

from retriever.artifacts import Artifact
from retriever.batch_order import BatchOrder
from retriever.protocols import BatchPlanner, FloatArray, IntArray

QUERIES, SIZE = 6, 2


class Turned:
    """Queries in order, turned by the epoch and by the number of the set; notes the banks that it is shown."""

    def __init__(self, by: int, banks: list[FloatArray | None]) -> None:
        self._by, self._banks = by, banks

    def plan(self, epoch: int, bank: FloatArray | None = None) -> IntArray:
        self._banks.append(None if bank is None else bank.copy())
        return np.roll(np.arange(QUERIES, dtype=np.int32), self._by + epoch).reshape(-1, SIZE)


def opener(banks: list[FloatArray | None]) -> "type[BatchPlanner] | object":
    def open_planner(negatives: Artifact | None) -> BatchPlanner:
        return Turned(0 if negatives is None else negatives.number, banks)

    return open_planner


def negatives(number: int) -> Artifact:
    return Artifact("negatives", number, Path("unused"), {})


def order(banks: list[FloatArray | None], dimensions: int | None = None) -> BatchOrder:
    return BatchOrder(opener(banks), QUERIES, dimensions)  # type: ignore[arg-type]  # a function is one


def test_a_position_is_a_place_in_the_plan_of_its_epoch() -> None:
    found = [order([]).at(position) for position in range(7)]
    assert [epoch for _, epoch in found] == [0, 0, 0, 1, 1, 1, 2]
    assert [rows.tolist() for rows, _ in found[:4]] == [[0, 1], [2, 3], [4, 5], [5, 0]]


def test_adopting_goes_on_at_the_same_place_of_the_set_s_own_plan() -> None:
    run = order([])
    run.at(4)
    run.adopt(negatives(3))
    rows, epoch = run.at(5)
    assert epoch == 1 and rows.tolist() == np.roll(np.arange(QUERIES), 4).reshape(-1, SIZE)[2].tolist()


def test_a_bank_is_shown_once_every_query_is_in_it() -> None:
    banks: list[FloatArray | None] = []
    run = order(banks, dimensions=2)
    assert run.keeps_bank
    for position in range(6):
        rows, _ = run.at(position)
        run.note(rows, np.full((SIZE, 2), position, np.float32))
    run.at(6)
    assert banks[0] is None
    assert banks[1] is not None and sorted(banks[1][:, 0]) == [0, 0, 1, 1, 2, 2]
    assert banks[2] is not None and sorted(banks[2][:, 0]) == [3, 3, 4, 4, 5, 5]


def test_a_resumed_epoch_keeps_the_plan_of_the_bank_that_it_began_with(tmp_path: Path) -> None:
    class ByBank(Turned):
        def plan(self, epoch: int, bank: FloatArray | None = None) -> IntArray:
            return np.argsort(np.arange(QUERIES) if bank is None else bank[:, 0]).astype(np.int32).reshape(-1, SIZE)

    def run_to(end: int, run: BatchOrder, start: int = 0) -> list[list[int]]:
        found = []
        for position in range(start, end):
            rows, _ = run.at(position)
            run.note(rows, (-position - np.repeat(rows[:, None], 2, axis=1)).astype(np.float32))
            found.append(rows.tolist())
        return found

    def fresh() -> BatchOrder:
        return BatchOrder(lambda negatives: ByBank(0, []), QUERIES, 2)

    whole = run_to(9, fresh())
    broken = fresh()
    run_to(5, broken)
    broken.save(tmp_path)
    resumed = fresh()
    assert resumed.restore(tmp_path, None) and not fresh().restore(tmp_path / "none", None)
    assert run_to(9, resumed, start=5) == whole[5:]


def test_a_plan_by_the_bank_stays_when_a_set_is_adopted_and_is_made_anew_where_none_was_saved(tmp_path: Path) -> None:
    banks: list[FloatArray | None] = []
    run = order(banks, dimensions=2)
    expected = [run.at(position)[0].tolist() for position in range(3)]
    for position in range(3):
        run.note(run.at(position)[0], np.ones((SIZE, 2), np.float32))
        run.adopt(negatives(2))
    assert [run.at(position)[0].tolist() for position in range(3)] == expected and len(banks) == 1
    assert not run.restore(tmp_path, None)
    run.adopt(negatives(1))
    assert run.at(4)[0].tolist() == np.roll(np.arange(QUERIES), 2).reshape(-1, SIZE)[1].tolist()


def test_a_plan_of_batches_of_another_size_is_left_and_the_bank_kept(tmp_path: Path) -> None:
    run = order([], dimensions=2)
    for position in range(3):
        run.note(run.at(position)[0], np.full((SIZE, 2), position, np.float32))
    run.save(tmp_path)

    class Wider(Turned):
        def plan(self, epoch: int, bank: FloatArray | None = None) -> IntArray:
            return super().plan(epoch, bank).reshape(-1, 3)

    banks: list[FloatArray | None] = []
    again = BatchOrder(lambda negatives: Wider(0, banks), QUERIES, 2)
    assert again.restore(tmp_path, None) and again.batches_per_epoch == 2
    assert [again.at(position)[0].tolist() for position in range(2)] == [[0, 1, 2], [3, 4, 5]]
    assert banks[-1] is not None and sorted(banks[-1][:, 0]) == [0, 0, 1, 1, 2, 2]


def test_where_queries_repeat_within_an_epoch_each_batch_is_a_turn() -> None:
    run = BatchOrder(lambda negatives: Turned(0, []), QUERIES, repeats=True)
    assert (run.batches_per_epoch, run.batches_per_turn) == (3, 1)
    assert [turn for _, turn in map(run.at, range(7))] == list(range(7))
    assert run.at(3)[0].tolist() == [5, 0]


def test_without_a_bank_nothing_is_written(tmp_path: Path) -> None:
    run = order([])
    run.save(tmp_path)
    assert run.restore(tmp_path, negatives(2))
    assert not [*tmp_path.iterdir()] and not run.keeps_bank
    assert run.at(0)[0].tolist() == [4, 5]
