"""AR2 from the command line on tiny data: ranker and retriever learn in turn from one store, the one from the other."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from retriever.artifacts import CURRENT, Artifact
from retriever.phases import PhasesConfig
from retriever.ranker import RankerConfig, load_ranker
from retriever.store import Store
from tests.cycle.test_cycle import call_hone, run_hone
from tests.stand_ins import write_tiny_data
from tests.tiny_model import write_tiny_model

RUN = """
seed = 5
[data]
path = "data"
[model]
name = "{model}"
dropout = 0.1
[train]
max_steps = 14
batch_size = 8
num_negatives = 3
learning_rate = 2e-3
warmup_steps = 2
precision = "fp32"
device = "cpu"
save_every = 1
keep_checkpoints = 100
[ranker]
name = "{model}"
batch_size = 8
num_negatives = 3
learning_rate = 2e-3
warmup_steps = 2
[phases]
ranker = 2
retriever = 4
[teacher]
name = "ranker"
loss = "ar2"
contrastive = 0.0
[negatives]
depth = 20
[refresh]
trigger = "steps:6"
adopt = "scheduled"
lag = 0
[index]
precision = "fp32"
"""
TURNS = PhasesConfig(2, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, model, run.toml and the store that `hone cycle` left in ``cycled``."""
    folder = tmp_path_factory.mktemp("ar2")
    write_tiny_data(folder / "data", passages=120, queries=80)
    model = write_tiny_model(folder / "tiny")
    (folder / "run.toml").write_text(RUN.format(model=model))
    printed = run_hone(folder, "cycle", "cycled")
    assert (printed["reason"], printed["step"], printed["negative_sets_adopted"]) == ("finished", 14, 3)
    return folder


@pytest.fixture(scope="module")
def checkpoints(folder: Path) -> list[Artifact]:
    """A checkpoint a step, from 0 on."""
    series = Store(folder / "cycled").checkpoints
    found = [series.at(number) for number in series.numbers()]
    assert [one.facts["step"] for one in found] == list(range(15))
    return found


def steps(folder: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (folder / "cycled/events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == "step"]


def test_only_one_model_s_weights_change_in_a_phase(checkpoints: list[Artifact]) -> None:
    for before, after in pairwise(checkpoints):
        moved = {
            "retriever": before.facts["weights_sha256"] != after.facts["weights_sha256"],
            "ranker": before.facts["ranker"]["weights_sha256"] != after.facts["ranker"]["weights_sha256"],
        }
        turn = TURNS.learner_at(before.facts["step"])
        assert moved == {"retriever": turn == "retriever", "ranker": turn == "ranker"}, before.facts["step"]


def test_the_retriever_learns_from_the_ranker_alone_and_every_pair_has_its_score(folder: Path) -> None:
    told = steps(folder)
    assert [one["phase"] for one in told] == [TURNS.learner_at(step) for step in range(14)]
    for one in told:
        if one["phase"] == "retriever":
            assert one["loss"] == pytest.approx(one["teacher_loss"], abs=1e-3) and one["unscored"] == 0
        else:
            assert "teacher_loss" not in one


def test_candidates_come_from_the_models_that_were_trained_and_both_are_published_as_one(
    folder: Path, checkpoints: list[Artifact]
) -> None:
    store = Store(folder / "cycled")
    sets = [store.negatives.at(number) for number in store.negatives.numbers()]
    assert [one.facts["step"] for one in sets] == [0, 6, 12, 14]
    pools = [one.sha256("passages.npy") for one in sets]
    assert len({*pools}) == 3 and pools[2] == pools[3], "the last steps are the ranker's, the retriever stays"
    final, generation = checkpoints[-1], store.generations.get(CURRENT)
    assert generation is not None and generation.parents["checkpoint"] == final.number
    scores = []
    for artifact in (final, generation):
        assert artifact.facts["ranker"]["weights_sha256"] == final.facts["ranker"]["weights_sha256"]
        scores.append(load_ranker(RankerConfig(str(artifact.path / "ranker"))).fingerprint("fp32"))
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_trainer_and_refresher_apart_give_the_weights_of_one_process(folder: Path, checkpoints: list[Artifact]) -> None:
    run_hone(folder, "train", "trained")
    newest = Store(folder / "trained").checkpoints.get(CURRENT)
    assert newest is not None
    for facts in (newest.facts, checkpoints[-1].facts):
        assert facts["weights_sha256"] == checkpoints[-1].facts["weights_sha256"]
        assert facts["ranker"]["weights_sha256"] == checkpoints[-1].facts["ranker"]["weights_sha256"]


def test_a_teacher_that_the_run_does_not_train_is_refused(folder: Path) -> None:
    text = (folder / "run.toml").read_text()
    start, end = text.index("[ranker]"), text.index("[teacher]")
    (folder / "lacking.toml").write_text(text[:start] + text[end:])
    done = call_hone(folder, "cycle", "lacking.toml", "--store", "lacking")
    assert done.returncode == 2 and 'teacher.name = "ranker" is the run\'s own: it needs [ranker]' in done.stderr
