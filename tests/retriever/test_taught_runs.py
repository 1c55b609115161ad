"""Runs with a teacher: what is taught before the first negative set, and the run's own ranker as a teacher."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from retriever.artifacts import Artifact
from retriever.checkpoint import model_folder
from retriever.encoder import load_encoder
from retriever.errors import InputError
from retriever.examples import Batch
from retriever.negatives import open_negative_set
from retriever.phases import PhasesConfig
from retriever.protocols import FloatArray
from retriever.ranker_learner import RankerLearner
from retriever.ranks import Ranks
from retriever.refresh_policy import RefreshConfig
from retriever.retriever_learner import HEAD, RetrieverLearner
from retriever.teacher import Taught, Teacher, TeacherConfig, asking_ranker, group_of
from retriever.teacher_scores import TeacherScores
from tests.retriever.training_stand_ins import TRAIN, Bench, ignore, stopping_at
from tests.stand_ins import OverlapRanker

pytestmark = pytest.mark.usefixtures("own_precision")


def stored(bench: Bench, config: TeacherConfig) -> Teacher:
    """A teacher whose scores come with each set, as OverlapRanker would give them to candidates of any set."""
    if not config.is_stored:
        return Teacher(config, asking_ranker(OverlapRanker().score))

    def open_scores(artifact: Artifact) -> TeacherScores:
        pool = open_negative_set(artifact.path)
        pool = replace(pool, positives=np.arange(20, dtype=np.int32)[:, None], passages=np.zeros((20, 1), np.int32))
        return TeacherScores(pool, np.zeros((20, 1), np.float32), np.ones((20, 1), np.float32))

    return Teacher(config, open_scores=open_scores)


@pytest.mark.parametrize(
    ("keys", "waits"),
    [
        ({"contrastive": 0.0}, True),
        ({"contrastive": 0.0, "over": "batch"}, True),
        ({"contrastive": 0.0, "live": True}, True),
        ({"contrastive": 0.0, "live": True, "loss": "ar2"}, True),
        ({"contrastive": 0.0, "live": True, "loss": "margin_mse"}, True),
        ({"contrastive": 0.0, "live": True, "loss": "soft_infonce"}, True),
        ({"contrastive": 0.0, "live": True, "loss": "cosent"}, False),
        ({"contrastive": 0.1}, False),
    ],
)
def test_steps_that_teach_nothing_are_warned_of_once(tmp_path: Path, keys: dict[str, Any], waits: bool) -> None:
    config = TeacherConfig("r", **keys)
    bench = Bench(
        tmp_path,
        train=replace(TRAIN, max_steps=5, save_every=2),
        refresh=RefreshConfig(trigger="steps:10", adopt="scheduled", lag=3),
        teacher=lambda bench: stored(bench, config),
        dropout=0.0,
    )
    bench.run()
    assert [told["negatives"] for told in bench.told("step")] == [None, None, None, 0, 0]
    said = [told["message"] for told in bench.told("warning") if "nothing is taught until the first" in told["message"]]
    assert len(said) == waits == (max(told["loss"] for told in bench.told("step")[:3]) == 0)
    weights = [bench.store.checkpoints.at(number).facts["weights_sha256"] for number in (0, 1)]
    assert (weights[0] == weights[1]) == waits, "of step 0 and 2"


# ---------------------------------------------------------------------------------------------- the run's own ranker


def own(bench: Bench) -> Teacher:
    return Teacher(TeacherConfig("ranker", loss="ar2", contrastive=0.0))


def ar2(folder: Path, **settings: Any) -> Bench:
    made = Bench(folder, phases=PhasesConfig(2, 3), teacher=own, **settings)
    made.ranker = made.ranking()
    return made


def test_the_run_s_own_ranker_teaches_with_its_weights_of_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[FloatArray, FloatArray]] = []
    trainer = ar2(tmp_path, train=replace(TRAIN, max_steps=5)).trainer()
    ranker, retriever = trainer._learners["ranker"], trainer._learners["retriever"]
    assert isinstance(ranker, RankerLearner) and isinstance(retriever, RetrieverLearner)
    teach = Teacher.teach

    def spied(self: Teacher, batch: Batch, texts: Any, ranks: Ranks) -> Taught | None:
        taught = teach(self, batch, texts, ranks)
        assert taught is not None
        lines, columns = np.nonzero(group_of(batch))
        scores = ranker.score([texts[0][i] for i in lines], [texts[1][j] for j in columns])
        seen.append((taught.scores.numpy()[lines, columns], scores))
        return taught

    monkeypatch.setattr(Teacher, "teach", spied)
    trainer.run()
    assert len(seen) == 3 * TRAIN.accumulation
    for told, now in seen:
        np.testing.assert_allclose(told, now, atol=1e-5)
        assert np.ptp(now) > 0


def test_ar2_resumes_exactly_in_the_middle_of_a_phase(tmp_path: Path) -> None:
    refresh = RefreshConfig(trigger="steps:3", adopt="scheduled", lag=0)
    whole, broken = (ar2(tmp_path / name, refresh=refresh) for name in ("whole", "broken"))
    whole.run()
    broken.hears = stopping_at("step", 4)
    assert broken.run().reason == "interrupted"
    broken.hears = ignore
    assert broken.run().reason == "finished"
    assert broken.both_weights()[-1] == whole.both_weights()[-1]


def test_a_teacher_s_head_learns_is_resumed_exactly_and_not_part_of_the_model(tmp_path: Path) -> None:
    config = TeacherConfig("r", live=True, head=True)
    refresh = RefreshConfig(trigger="steps:3", adopt="scheduled", lag=0)
    whole, broken = (
        Bench(tmp_path / name, refresh=refresh, teacher=lambda bench: stored(bench, config))
        for name in ("whole", "broken")
    )
    whole.run()
    broken.hears = stopping_at("step", 4)
    assert broken.run().reason == "interrupted"
    broken.hears = ignore
    broken.run()
    ends = [load_file(bench.newest().path / "training" / HEAD)["weight"] for bench in (whole, broken)]
    assert torch.equal(*ends) and float((ends[0] - torch.eye(len(ends[0]))).abs().max()) > 1e-4
    assert whole.weights() == broken.weights() == load_encoder(model_folder(broken.newest())).weights_sha256()


def test_without_a_ranker_in_training_there_is_none_to_ask(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is the run's own: it needs \[ranker\]"):
        Bench(tmp_path, teacher=own).trainer()
