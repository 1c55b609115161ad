import subprocess
from pathlib import Path

import pytest

from retriever.store import Store
from tests.crash.killing import final_weights, hone, train_under_fire, write_run

VICTIMS = ["trainer", "refresher"]


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


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
def test_scheduled_gives_the_weights_of_an_undisturbed_run(tmp_path: Path, victim: str) -> None:
    expected = undisturbed(tmp_path, 60)
    config = write_run(tmp_path, "scheduled", 60)
    ending = train_under_fire(config, tmp_path / "store", victim, kills=2, seed=5, mean_seconds=6.0)
    assert final_weights(tmp_path / "store") == expected, ending
    verify_everything(tmp_path / "store")


@pytest.mark.soak
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("adopt", ["scheduled", "ready"])
def test_twenty_kills(tmp_path: Path, victim: str, adopt: str) -> None:
    steps = {"scheduled": 300, "ready": 3000}[adopt]  # a run that never waits needs more of them to be hit so often
    expected = undisturbed(tmp_path, steps) if adopt == "scheduled" else ""
    config = write_run(tmp_path, adopt, steps)
    ending = train_under_fire(config, tmp_path / "store", victim, kills=20, seed=11, mean_seconds=6.0)
    print(ending)
    if adopt == "scheduled":
        assert final_weights(tmp_path / "store") == expected, ending
    assert final_weights(tmp_path / "store")
    verify_everything(tmp_path / "store")
