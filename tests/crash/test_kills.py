import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from retriever.durable import read_lines
from retriever.store import Store
from tests.crash.killing import Ending, Life, at_random, final_weights, hone, train_under_fire, write_run

VICTIMS = ["trainer", "refresher"]
KILLS = 20


def undisturbed(folder: Path, steps: int) -> str:
    config = write_run(folder, "scheduled", steps)
    subprocess.run(hone("cycle", config, "--store", folder / "calm"), check=True, capture_output=True)
    return final_weights(folder / "calm")


def verify_everything(root: Path) -> None:
    store = Store(root)
    for kind in ("checkpoints", "generations", "negatives", "corpora"):
        series = store.series(kind)
        for number in series.numbers():
            series.at(number).verify()


def beyond_a_later_checkpoint(life: Life, phases: Counter[str]) -> bool:
    """Tell whether the trainer has saved a step above 0 in this life and gone on from there: work is there to lose."""
    saved = [one["step"] for one in life.said if one["event"] == "checkpoint" and one["step"] > 0]
    return bool(saved) and any(one["event"] == "step" and one["step"] > saved[0] for one in life.said)


def building_then_mining(life: Life, phases: Counter[str]) -> bool:
    """Tell whether the refresher is in the middle of what it was not yet killed in."""
    building = phases["encodes"] + phases["builds"]
    return life.phase == "mines" and not phases["mines"] if building else life.phase in ("encodes", "builds")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights that 60 steps end with where nobody is killed."""
    return undisturbed(tmp_path_factory.mktemp("calm"), 60)


@pytest.mark.slow
def test_a_killed_trainer_resumes_later_steps_and_ends_with_the_weights_of_an_undisturbed_run(
    tmp_path: Path, expected: str
) -> None:
    config = write_run(tmp_path, "scheduled", 60)
    ending = train_under_fire(config, tmp_path / "store", "trainer", beyond_a_later_checkpoint, kills=2)
    resumed = [one["step"] for one in read_lines(tmp_path / "store/events.jsonl") if one["event"] == "resumed"]
    assert ending.kills == len(resumed) == 2 and 0 < resumed[0] < resumed[1], (ending, resumed)
    assert final_weights(tmp_path / "store") == expected, ending
    verify_everything(tmp_path / "store")


@pytest.mark.slow
def test_a_refresher_killed_while_it_builds_and_while_it_mines_changes_no_weights(
    tmp_path: Path, expected: str
) -> None:
    config = write_run(tmp_path, "scheduled", 60)
    ending = train_under_fire(config, tmp_path / "store", "refresher", building_then_mining, kills=10)
    assert ending.phases["encodes"] + ending.phases["builds"] and ending.phases["mines"], ending
    assert final_weights(tmp_path / "store") == expected, ending
    verify_everything(tmp_path / "store")


@pytest.mark.soak
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("adopt", ["scheduled", "ready"])
def test_twenty_kills(tmp_path: Path, victim: str, adopt: str) -> None:
    """Runs follow each other, each to its end, until the victim was killed often enough."""
    steps = {"scheduled": 300, "ready": 1000}[adopt]  # a run that never waits needs more of them to be hit as often
    calm = undisturbed(tmp_path, steps) if adopt == "scheduled" else None
    config = write_run(tmp_path, adopt, steps)
    ripe, ending, runs = at_random(seed=11, mean_seconds=2.0), Ending(), 0
    while ending.kills < KILLS:
        store = tmp_path / f"store-{runs}"
        run = train_under_fire(config, store, victim, ripe, KILLS - ending.kills)
        assert calm in (None, final_weights(store)), run
        verify_everything(store)
        shutil.rmtree(store)
        ending, runs = Ending(ending.phases + run.phases, ending.starts + run.starts), runs + 1
    print(f"\n{adopt}, {victim}: {ending.kills} kills in {runs} runs, {ending.starts} starts: {dict(ending.phases)}")
