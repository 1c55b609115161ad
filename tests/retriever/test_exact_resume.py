"""Exact resumption: a run that is stopped or killed anywhere ends with the bits of the undisturbed one."""

import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from retriever.errors import CorruptError
from retriever.refresh_policy import RefreshConfig
from retriever.trainer import Outcome
from tests.retriever.training_stand_ins import TRAIN, Bench, Killed, ignore, killing_at, stopping_at

pytestmark = pytest.mark.usefixtures("own_process")

LAST = TRAIN.max_steps


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A run from start to end, with dropout and two batches a step."""
    AcceleratorState._reset_state(True)
    bench = Bench(tmp_path_factory.mktemp("undisturbed"))
    bench.run()
    return bench


def check_same_end(bench: Bench, undisturbed: Bench, outcome: Outcome) -> None:
    assert (outcome.reason, outcome.step, outcome.negative_sets_adopted) == ("finished", LAST, 3)
    assert bench.weights() == undisturbed.weights()
    assert [step for step, _ in bench.adoptions()] == [step for step, _ in undisturbed.adoptions()]
    states = [json.loads((one.newest().path / "training" / "state.json").read_text()) for one in (bench, undisturbed)]
    assert states[0] == states[1]


@pytest.mark.parametrize("step", range(1, LAST))
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, undisturbed: Bench, step: int) -> None:
    bench = Bench(tmp_path, hears=stopping_at("step", step))
    outcome = bench.run()
    assert (outcome.reason, outcome.step) == ("interrupted", step)
    saved = bench.newest()
    assert (saved.facts["step"], saved.facts["final"], saved.number) == (step, False, outcome.checkpoint)
    bench.hears = ignore
    check_same_end(bench, undisturbed, bench.run())
    assert bench.told("resumed") == [{"step": step, "checkpoint": saved.number}]
    assert bench.draws == undisturbed.draws


@pytest.mark.parametrize(
    ("event", "step"),
    [("step", 1), ("step", 6), ("checkpoint", 0), ("checkpoint", 3), ("adopted", 0), ("adopted", 6)],
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, undisturbed: Bench, event: str, step: int) -> None:
    """A checkpoint's event comes before its mark: the refresher was never told, and is by the next process."""
    bench = Bench(tmp_path, hears=killing_at(event, step))
    with pytest.raises(Killed):
        bench.run()
    bench.hears = ignore
    check_same_end(bench, undisturbed, bench.run())


def test_an_interruption_between_adoption_and_batch_adopts_once(tmp_path: Path, undisturbed: Bench) -> None:
    bench = Bench(tmp_path, hears=stopping_at("adopted", 3))
    assert bench.run().step == 3
    bench.hears = ignore
    check_same_end(bench, undisturbed, bench.run())
    assert bench.adoptions() == undisturbed.adoptions()


def test_several_interruptions_are_as_good_as_none(tmp_path: Path, undisturbed: Bench) -> None:
    bench = Bench(tmp_path)
    for step in (1, 2, 5):
        bench.hears = stopping_at("step", step)
        assert bench.run().step == step
    bench.hears = ignore
    check_same_end(bench, undisturbed, bench.run())


@pytest.mark.parametrize("name", ["manifest.json", "model/model.safetensors", "training/optimizer.safetensors"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(tmp_path: Path, undisturbed: Bench, name: str) -> None:
    bench = Bench(tmp_path, hears=stopping_at("step", 5))
    bench.run()
    path = bench.newest().path / name
    path.write_bytes(path.read_bytes()[:-20])
    bench.hears = ignore
    check_same_end(bench, undisturbed, bench.run())
    assert bench.told("resumed")[0]["step"] == 4
    assert any("using the one before it" in told["message"] for told in bench.told("warning"))


def test_a_recorded_set_that_was_altered_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, hears=stopping_at("step", 5))
    bench.run()
    (bench.store.negatives.path(1) / "passages.npy").write_text("negatives of step 2")
    with pytest.raises(CorruptError, match=r"negatives.000001"):
        bench.run()


def test_scheduled_resumes_with_the_same_bits(tmp_path: Path) -> None:
    ends = []
    for step in (None, 1, 3, 6):
        hears = ignore if step is None else stopping_at("step", step)
        refresh = RefreshConfig(trigger="steps:3", adopt="scheduled", lag=2)
        bench = Bench(tmp_path / str(step), refresh=refresh, hears=hears)
        assert (bench.run().reason == "finished") == (step is None)
        bench.hears = ignore
        if step is not None:
            bench.run()
        ends.append((bench.weights(), bench.adoptions()))
    assert ends == ends[:1] * 4
