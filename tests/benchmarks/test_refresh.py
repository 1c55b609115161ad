import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.refresh import ALONE, is_over, take, watch, write_run
from retriever.beir import read_passages, read_queries
from retriever.refresh_policy import parse_trigger
from retriever.trec import read_qrels
from tests.stand_ins import write_tiny_data


def step(time: float, number: int, negatives: int | None = 0, staleness: int = 0) -> dict[str, Any]:
    return {"time": time, "event": "step", "step": number, "negatives": negatives, "staleness": staleness}


def event(time: float, name: str) -> dict[str, Any]:
    return {"time": time, "event": name}


def test_steps_count_for_the_side_on_which_they_were_taken_whole() -> None:
    seen = watch(
        [
            event(0, "build_started"),
            step(1, 1, None),
            step(2, 2, None),  # before the first negatives
            event(2.5, "negatives_published"),
            event(2.6, "adopted"),
            step(4, 3),  # the refresher ended within it
            step(5, 4, staleness=4),
            step(6, 5, staleness=5),
            event(6.1, "checkpoint"),
            event(6.2, "build_started"),
            step(8, 6),
            step(10, 7),
            step(12.5, 8),
            event(12.6, "negatives_published"),
            step(14, 9),
            step(15, 10, staleness=1),
        ]
    )
    assert seen.idle == (1, 1, 1) and seen.busy == (2, 2.5)
    assert seen.ratio == pytest.approx(1 / 2.25)
    assert seen.staleness[1:3] == ((4, 4), (5, 5)) and seen.staleness[-1] == (10, 1)


def test_without_a_step_on_both_sides_there_is_no_ratio() -> None:
    assert watch([step(1, 1), step(2, 2), step(3, 3)]).ratio is None


def test_the_step_in_which_staleness_is_measured_counts_for_neither_side() -> None:
    seen = watch([step(1, 1), step(2, 2), event(6, "staleness"), step(7, 3), step(8, 4)])
    assert seen.idle == (1, 1) and seen.busy == ()


def test_a_training_is_over_once_enough_steps_were_taken_after_the_last_refresh() -> None:
    before = [step(number, number, staleness=number) for number in range(1, 31)]  # of step 0, also at step 30
    after = [step(number, number, staleness=number - 30) for number in range(31, 31 + ALONE)]
    assert not is_over(watch([]), 30)
    assert not is_over(watch(before), 30)
    assert not is_over(watch([*before, *after[:-1]]), 30)
    assert is_over(watch([*before, *after]), 30)


def test_no_refresh_is_asked_for_after_the_last_one(tmp_path: Path) -> None:
    write_run(tmp_path / "run.toml", "data", 30, 60, "full")
    run = tomllib.loads((tmp_path / "run.toml").read_text())
    marked = parse_trigger(run["refresh"]["trigger"], run["train"]["save_every"])
    assert [step for step in range(200) if marked(step)] == [0, 30, 60]


def test_the_sample_holds_its_queries_positives(tmp_path: Path) -> None:
    take(write_tiny_data(tmp_path / "whole"), tmp_path / "data", 30)
    passages = {key for _, key, _, _ in read_passages(tmp_path / "data")}
    pairs = [(query, passage) for _, query, passage, _ in read_qrels(tmp_path / "data/qrels/train.tsv")]
    assert len(passages) == 30 and len(pairs) == 20
    assert {passage for _, passage in pairs} <= passages
    assert {key for _, key, _ in read_queries(tmp_path / "data")} == {query for query, _ in pairs}
