import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from safetensors.numpy import load_file, save_file

from retriever.data import QuerySet
from retriever.errors import CorruptError, InputError
from retriever.examples import Batch
from retriever.pair_memory import FILE, AuditConfig, PairMemory, read_pairs, standardised
from retriever.protocols import IntArray
from tests.retriever.training_stand_ins import TRAIN, Bench, Killed, ignore, killing_at, stopping_at

PASSAGES = 50


def queries(count: int = 8) -> QuerySet:
    """Query i has passage i; query 0 has passage 40, too."""
    judged: list[Mapping[int, int]] = [{row: 1, **({40: 1} if row == 0 else {})} for row in range(count)]
    return QuerySet("train", [f"q{row}" for row in range(count)], ["text"] * count, judged)


def memory(count: int = 8, passages: int = PASSAGES, **knobs: Any) -> PairMemory:
    return PairMemory(queries(count), passages, AuditConfig(**knobs), 3, lambda row, epoch: row)


def batch(rows: list[int], allowed: list[list[bool]], passages: list[int]) -> Batch:
    """Query i's positive is the passage of its own number."""
    positive = np.array([passages.index(row) for row in rows], np.int64)
    mask = np.array(allowed, np.bool_)
    return Batch(np.array(rows, np.int32), np.array(passages, np.int32), positive, mask, np.zeros_like(mask))


def told(losses: list[float], **knobs: Any) -> PairMemory:
    """A memory in which pair i has the loss losses[i]: one negative at the score that gives it."""
    held = memory(len(losses), **knobs)
    rows = list(range(len(losses)))
    scores = np.zeros((len(rows), len(rows) + 1), np.float32)
    scores[:, -1] = [math.log(math.expm1(loss)) for loss in losses]
    allowed = np.eye(len(rows), len(rows) + 1, dtype=bool)
    allowed[:, -1] = True
    held.observe(batch(rows, allowed.tolist(), [*rows, 45]), scores, 1.0)
    return held


def test_margin_and_loss_are_those_of_the_formulas() -> None:
    held = memory()
    generator = np.random.default_rng(0)
    passages, rows = [2, 5, 30, 31], [5, 2]
    allowed = [[True, True, False, True], [True, False, True, True]]
    seen: dict[int, list[tuple[float, float]]] = {5: [], 2: []}
    for temperature in (0.05, 0.2, 1.0):
        scores = generator.uniform(-1, 1, (2, 4)).astype(np.float32)
        held.observe(batch(rows, allowed, passages), scores, temperature)
        for line, row in enumerate(rows):
            own = float(scores[line, passages.index(row)])
            others = [
                float(scores[line, column]) for column in range(4) if allowed[line][column] and passages[column] != row
            ]
            total = sum(math.exp(one / temperature) for one in [own, *others])
            seen[row].append((own - max(others), -math.log(math.exp(own / temperature) / total)))
    table = held.table()
    for row, values in seen.items():
        place = int(np.flatnonzero((table.queries == row) & (table.passages == row))[0])
        found = (table.margins[place], table.losses[place])
        assert found == pytest.approx(tuple(np.mean(values, axis=0)), rel=1e-5)
        assert table.seen[place] == 3
    assert np.isnan(table.margins[table.seen == 0]).all() and (table.seen == 0).sum() == 7


def test_a_query_without_a_negative_and_scores_without_bounds_leave_finite_means() -> None:
    held = memory()
    scores = np.array([[1.0, 0.0], [-900.0, 900.0]], np.float32)
    held.observe(batch([0, 1], [[True, False], [True, True]], [0, 1]), scores, 0.01)
    table = held.table()
    assert table.seen[table.queries == 0].sum() == 0, "its only candidate is its positive"
    assert table.margins[table.queries == 1] == [1800.0] and table.losses[table.queries == 1] == [0.0]


def test_a_positive_that_nobody_announced_is_refused() -> None:
    with pytest.raises(ValueError, match="does not know"):
        memory(2).observe(batch([3], [[True, True]], [3, 4]), np.zeros((1, 2), np.float32), 1.0)


def test_nothing_is_left_out_unless_asked_and_not_before_the_warm_up() -> None:
    losses = [0.1] * 9 + [9.0]
    rows = np.arange(10, dtype=np.int32)
    assert told(losses).kept(rows, 5, 5).tolist() == rows.tolist()
    held = told(losses, exclude="drop", warmup_epochs=2)
    assert held.kept(rows, 1, 1).tolist() == rows.tolist()
    assert held.kept(rows[::-1].copy(), 2, 2).tolist() == list(range(8, -1, -1)), "in their order, the bad one left out"


def test_both_sides_of_the_mean_are_bad_and_at_most_half_of_a_batch_goes() -> None:
    losses = [1e-4] + [4.0] * 20 + [8.0]
    held = told(losses, exclude="drop", beta=2.0)
    rows = np.arange(22, dtype=np.int32)
    assert held.kept(rows, 1, 1).tolist() == list(range(1, 21))
    assert held.kept(np.array([0, 21], np.int32), 1, 1).tolist() == [0], "the farther one of the two goes"
    assert held.kept(np.array([21], np.int32), 1, 1).tolist() == [21]


def test_which_pairs_are_bad_is_settled_for_an_epoch() -> None:
    rows = np.arange(10, dtype=np.int32)
    held = told([0.1] * 9 + [9.0], exclude="drop")
    first = held.kept(rows, 1, 1)
    columns = [*range(10), 45]
    allowed = np.eye(10, 11, dtype=bool) | (np.arange(11) == 10)
    scores = np.zeros((10, 11), np.float32)
    scores[0, 10] = 99
    for _ in range(9):
        held.observe(batch(list(range(10)), allowed.tolist(), columns), scores, 1.0)
    assert held.kept(rows, 1, 1).tolist() == first.tolist() == list(range(9))
    assert held.kept(rows, 2, 2).tolist() == list(range(1, 10)), "query 0 has become the bad one"


def batch_of(losses: list[float], first: int) -> tuple[Batch, Any]:
    """A batch of the queries from ``first`` on that have ``losses``, and its scores at τ = 1."""
    rows = [*range(first, first + len(losses))]
    allowed = np.eye(len(rows), len(rows) + 1, dtype=bool) | (np.arange(len(rows) + 1) == len(rows))
    scores = np.zeros((len(rows), len(rows) + 1), np.float32)
    scores[:, -1] = [math.log(math.expm1(loss)) for loss in losses]
    return batch(rows, allowed.tolist(), [*rows, 2000]), scores


def test_what_was_seen_while_the_loss_still_fell_is_not_bad_for_that() -> None:
    count, size, generator = 1024, 32, np.random.default_rng(0)
    held = memory(count, exclude="drop", passages=3000)
    for step in range(count // size):
        falls = 0.3 + 3 * math.exp(-step / 5)
        losses = (falls * generator.uniform(0.8, 1.2, size)).tolist()
        held.observe(*batch_of(losses, step * size), 1.0)
    left_out = [size - len(held.kept(np.arange(at, at + size, dtype=np.int32), 1, 1)) for at in range(0, count, size)]
    assert sum(left_out) < 0.1 * count and left_out[0] < size // 2, "of the first batches the losses were the highest"


def test_a_harder_data_set_is_not_left_out_beside_an_easy_one() -> None:
    generator = np.random.default_rng(0)
    held = memory(200, exclude="drop", passages=3000)
    for first, level in ((0, 0.1), (50, 0.1), (100, 0.1), (150, 3.0)):  # as [mix] makes batches
        held.observe(*batch_of((level + generator.uniform(-0.05, 0.05, 50)).tolist(), first), 1.0)
    assert len(held.kept(np.arange(150, 200, dtype=np.int32), 1, 1)) == 50


def test_planted_pairs_are_not_left_out_of_what_measures_them() -> None:
    with pytest.raises(InputError, match=r"\[audit\] planted measures wrong pairs, and exclude would leave them out"):
        AuditConfig(planted=0.1, exclude="drop")


def test_thinning_draws_by_seed_epoch_and_query_as_often_as_its_weight() -> None:
    losses = [0.5] * 40 + [3.0] * 20
    held = told(losses, exclude="thin", beta=1.0)
    rows = np.arange(60, dtype=np.int32)
    weight = math.exp(-float(standardised(np.array(losses))[-1] ** 2) / 2)
    taken = np.array([np.isin(rows, held.kept(rows, epoch, epoch)) for epoch in range(1, 61)])
    assert taken[:, :40].all()
    assert taken[:, 40:].mean() == pytest.approx(weight, abs=4 * math.sqrt(weight / 1200)) and 0.3 < weight < 0.4
    again = told(losses, exclude="thin", beta=1.0)
    backwards = [np.isin(rows, again.kept(rows[::-1].copy(), epoch, epoch)) for epoch in range(1, 61)]
    assert (taken == backwards).all(), "the order of a batch changes nothing"


def test_a_memory_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    rows = np.arange(10, dtype=np.int32)
    held = told([0.1] * 9 + [9.0], exclude="drop")
    expected = held.kept(rows, 1, 1)
    held.save(tmp_path)
    again = memory(10, exclude="drop")
    assert again.restore(tmp_path) and again.kept(rows, 1, 1).tolist() == expected.tolist()
    found, table = read_pairs(tmp_path), held.table()
    assert found is not None
    for name in ("queries", "passages", "seen", "margins", "losses"):
        np.testing.assert_array_equal(getattr(found, name), getattr(table, name))
    assert not memory(9, exclude="drop").restore(tmp_path), "of other pairs"
    assert not memory(10).restore(tmp_path / "elsewhere") and read_pairs(tmp_path / "elsewhere") is None
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-9])
    with pytest.raises(CorruptError, match=FILE):
        read_pairs(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("planted", -0.1),
        ("planted", 0.6),
        ("percentile", 0.0),
        ("percentile", 101.0),
        ("beta", 0.0),
        ("warmup_epochs", 0),
    ],
)
def test_a_value_out_of_range_is_refused(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"\[audit\] {key}"):
        AuditConfig(**{key: value})


def test_equal_values_stand_nowhere() -> None:
    assert standardised(np.array([2.0, np.nan, 2.0])).tolist()[::2] == [0.0, 0.0]
    assert standardised(np.array([])).tolist() == []


# ---- in the trainer


AUDIT = AuditConfig(exclude="drop", beta=0.5)


@pytest.mark.usefixtures("own_precision")
def test_a_run_resumes_with_the_memory_it_had_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = Bench(tmp_path / "whole", audit=AUDIT)
    whole.run()
    expected = load_file(whole.newest().path / "training" / FILE)
    rows: IntArray = expected["seen"]
    assert rows.sum() < TRAIN.max_steps * TRAIN.accumulation * TRAIN.batch_size, "some pairs were left out"
    assert (rows > 0).all()
    for number, hears in enumerate((stopping_at("step", 3), stopping_at("step", 6), killing_at("step", 5))):
        bench = Bench(tmp_path / str(number), hears=hears, audit=AUDIT)
        try:
            bench.run()
        except Killed:
            AcceleratorState._reset_state(True)
        bench.hears = ignore
        bench.run()
        assert bench.weights() == whole.weights()
        again = load_file(bench.newest().path / "training" / FILE)
        assert all(np.array_equal(again[name], array) for name, array in expected.items())
        assert bench.told("warning") == []


@pytest.mark.usefixtures("own_precision")
def test_a_memory_alone_changes_no_weight_and_its_lack_is_said(tmp_path: Path) -> None:
    plain = Bench(tmp_path / "plain")
    plain.run()
    watching = Bench(tmp_path / "watching", hears=stopping_at("step", 5), audit=AuditConfig())
    watching.run()
    newest = watching.newest().path
    (newest / "training" / FILE).unlink()  # as if it had been trained without [audit] so far
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["files"][f"training/{FILE}"]
    (newest / "manifest.json").write_text(json.dumps(manifest))
    watching.hears = ignore
    watching.run()
    assert watching.weights() == plain.weights()
    assert any("[audit]" in one["message"] for one in watching.told("warning"))
    table = read_pairs(watching.newest().path / "training")
    assert table is not None and table.seen.sum() == 2 * TRAIN.accumulation * TRAIN.batch_size, "it began anew"


def test_a_memory_of_an_earlier_version_is_refused_as_such(tmp_path: Path) -> None:
    save_file({"keys": np.arange(3), "passages": np.array([5]), "seen": np.ones(3, np.int32)}, tmp_path / FILE)
    with pytest.raises(InputError, match="an earlier version of hone wrote it"):
        read_pairs(tmp_path)
