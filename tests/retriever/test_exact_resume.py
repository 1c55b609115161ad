"""Exact resumption: a run that is stopped or killed anywhere ends with the bits of the undisturbed one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from retriever.errors import CorruptError
from retriever.lora import LoraConfig
from retriever.losses.ranking import RankingLossConfig
from retriever.phases import PhasesConfig
from retriever.refresh_policy import RefreshConfig
from retriever.teacher import Teacher, TeacherConfig, asking_ranker
from retriever.trainer import Outcome
from tests.retriever.training_stand_ins import LOSS, TRAIN, Bench, Killed, ignore, killing_at, stopping_at
from tests.stand_ins import OverlapRanker

pytestmark = pytest.mark.usefixtures("own_precision")

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


def test_a_run_that_goes_on_with_another_seed_says_so_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, hears=stopping_at("step", 3))
    bench.run()
    saved = bench.newest().path
    bench.seed, bench.hears = 4, stopping_at("step", 5)
    bench.run()
    bench.hears = ignore
    assert bench.run().reason == "finished"
    assert [one["message"] for one in bench.told("warning") if "seed" in one["message"]] == [
        f"{saved}: trained with seed 3, and goes on with 4"
    ]


def test_a_damaged_checkpoint_brings_no_negatives_and_another_is_marked_for_it(tmp_path: Path) -> None:
    refresh = RefreshConfig(trigger="steps:100", max_staleness=2, on_stale="wait")
    bench = Bench(tmp_path, refresh=refresh, hears=killing_at("checkpoint", 3))
    with pytest.raises(Killed):
        bench.run()
    weights = bench.newest().path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    bench.hears = ignore
    assert bench.run().reason == "finished"
    assert [step for step, _ in bench.adoptions()] == [0, 3, 6]


def headed(bench: Bench) -> Teacher:
    return Teacher(TeacherConfig("tiny", live=True, head=True), asking_ranker(OverlapRanker().score))


PLAIN: dict[str, Any] = {"teacher": lambda bench: Teacher()}
HEAD: dict[str, Any] = {"teacher": headed}
LEARNED: dict[str, Any] = {"loss": replace(LOSS, temperature_schedule="learned")}


@pytest.mark.parametrize(
    ("first", "then"),
    [(PLAIN, HEAD), (HEAD, PLAIN), ({}, LEARNED), (LEARNED, {"loss": LOSS}), ({"lora": LoraConfig(4)}, {"lora": None})],
    ids=["a head", "no head", "a learned temperature", "a constant one", "no adapters"],
)
def test_with_other_weights_to_train_the_optimiser_s_moments_begin_anew_and_that_is_said(
    tmp_path: Path, first: dict[str, Any], then: dict[str, Any]
) -> None:
    bench = Bench(tmp_path, hears=stopping_at("step", 4), **first)
    bench.run()
    bench.hears = ignore
    for name, value in then.items():
        setattr(bench, name, value)
    assert bench.run().reason == "finished"
    assert bench.told("resumed")[0]["step"] == 4
    said = [one["message"] for one in bench.told("warning") if "begins anew" in one["message"]]
    assert len(said) == 1 and "the optimiser's moments of what is trained now" in said[0]


def test_a_ranker_s_loss_may_change_to_cet_and_back(tmp_path: Path) -> None:
    """Cross-entropy for coupled estimation grows a second head, which a checkpoint of listwise does not hold."""
    bench = Bench(tmp_path, hears=stopping_at("step", 2), phases=PhasesConfig(1, 0), refresh=RefreshConfig("once"))
    listwise = bench.ranker = bench.ranking()
    bench.run()
    for step, config in ((4, replace(listwise, loss=RankingLossConfig("cet"))), (LAST, listwise)):
        bench.ranker, bench.hears, bench.events = config, stopping_at("step", step), []
        assert bench.run().step == step
        said = [one["message"] for one in bench.told("warning")]
        assert len(said) == 1 and "the optimiser's moments of what is trained now" in said[0]
        assert ("the head of selection" in said[0]) == (config is not listwise)
