"""What a batch step adds to a plain one, through real trainers: the hardest negatives, one tower, staleness."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from miner.batch_plans import ClusterPlan
from retriever.artifacts import Artifact
from retriever.batch_step import BatchStep
from retriever.checkpoint import model_folder
from retriever.encoder import DualEncoder, ModelConfig, create_encoder, load_encoder
from retriever.errors import InputError
from retriever.learner import TrainConfig, open_workplace
from retriever.losses.contrastive import LossConfig
from retriever.phases import PhasesConfig
from retriever.protocols import FloatArray, Negatives
from retriever.ranks import Ranks
from retriever.refresh_policy import RefreshConfig
from retriever.retriever_learner import RetrieverLearner, RetrieverParts
from tests.retriever.rank_cases import ngame
from tests.retriever.training_stand_ins import TRAIN, Bench, MinesAtOnce, stopping_at
from tests.stand_ins import HashEncoder

pytestmark = pytest.mark.usefixtures("own_precision")


def batch_step(bench: Bench) -> BatchStep:
    learner = bench.trainer()._learners["retriever"]
    assert isinstance(learner, RetrieverLearner)
    return learner.batch_step


def test_the_hardest_of_the_drawn_are_kept(tmp_path: Path) -> None:
    step = batch_step(Bench(tmp_path))
    rows = np.array([0, 3], np.int32)
    drawn = Negatives(
        np.array([[5, 9, 14, 30], [7, 5, -1, -1]], np.int32),
        np.zeros((2, 4), np.float32),
        np.array([[True] * 4, [True, True, False, False]]),
    )
    found = step.hardest(rows, drawn, 3)
    queries = step.query_vectors(rows)
    for query, kept, mask, offered in zip(queries, found.rows, found.mask, drawn.rows, strict=True):
        offered = offered[offered >= 0]
        scores = step.passage_vectors(offered) @ query
        best = offered[np.argsort(-scores)][:3]
        assert kept[mask].tolist() == best.tolist()
    assert found.mask.sum(axis=1).tolist() == [3, 2]


class OneAfterTheOther(Ranks):
    """Three ranks, whose shares are computed here one after the other; notes how long they are."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__(accelerator)
        self.shares: list[int] = []

    def together(self, compute: Callable[[slice], FloatArray], length: int) -> torch.Tensor:
        """Return all shares."""
        parts = [compute(slice(length * rank // 3, length * (rank + 1) // 3)) for rank in range(3)]
        self.shares.extend(len(part) for part in parts)
        return torch.from_numpy(np.concatenate(parts))


def test_ranks_forward_a_share_of_what_is_drawn(tmp_path: Path) -> None:
    step = batch_step(Bench(tmp_path))
    rows, drawn = np.array([0, 3], np.int32), np.array([[5, 9, 14, 30], [7, 5, 2, 1]], np.int32)
    negatives = Negatives(drawn, np.zeros((2, 4), np.float32), np.ones((2, 4), np.bool_))
    expected = step.hardest(rows, negatives, 2)
    step.ranks = OneAfterTheOther(step.accelerator)
    assert step.hardest(rows, negatives, 2).rows.tolist() == expected.rows.tolist()
    assert step.ranks.shares == [2, 2, 3, 0, 1, 1], "of seven passages and two queries"


def test_ranks_ask_a_guide_for_a_share(tmp_path: Path) -> None:
    bench = Bench(tmp_path, loss=LossConfig(guide="start", guide_max=0.2))
    parts = replace(bench.retriever_parts(), guide=HashEncoder(8))
    step = RetrieverLearner(parts, bench.train, 1, open_workplace(bench.train), print).batch_step
    step.ranks = OneAfterTheOther(step.accelerator)
    step.backward(step.examples.batch(np.arange(4, dtype=np.int32), 0, None), 0, last=True)
    assert step.ranks.shares == [1, 1, 2, 1, 1, 2], "of four queries and their positives"


def test_where_nothing_was_drawn_nothing_is_kept(tmp_path: Path) -> None:
    empty = Negatives(np.full((2, 4), -1, np.int32), np.zeros((2, 4), np.float32), np.zeros((2, 4), np.bool_))
    found = batch_step(Bench(tmp_path)).hardest(np.array([0, 1], np.int32), empty, 2)
    assert found.rows.shape == (2, 2) and not found.mask.any()


def test_vectors_of_this_moment_are_those_of_the_saved_model_without_dropout(tmp_path: Path) -> None:
    step = batch_step(Bench(tmp_path, dropout=0.5))
    rows = np.array([2, 0, 1], np.int32)
    assert np.array_equal(step.query_vectors(rows), step.query_vectors(rows))
    assert np.allclose(step.passage_vectors(rows)[0], step.passage_vectors(rows[:1])[0], atol=1e-5)
    assert step.encoder.training


class TwoTowers(Bench):
    """A bench whose model has a tower a side."""

    def model(self) -> DualEncoder:
        return create_encoder(ModelConfig(str(self.folder / "tiny"), tied=False, dropout=0.0))


@pytest.mark.parametrize("grad_cache", [False, True])
def test_with_one_tower_in_training_the_other_keeps_its_fingerprint(tmp_path: Path, grad_cache: bool) -> None:
    """ADORE: vectors of passages stay good, so nothing is encoded again."""
    bench = TwoTowers(tmp_path, train=replace(TRAIN, towers="query", grad_cache=grad_cache))
    bench.run()
    first, last = (load_encoder(model_folder(one)) for one in (bench.store.checkpoints.at(0), bench.newest()))
    before, after = (model.fingerprints("torch fp32", "torch fp32") for model in (first, last))
    assert before.passage == after.passage
    assert before.query != after.query and before.space != after.space


@pytest.mark.parametrize("grad_cache", [False, True])
def test_one_tower_learns_before_the_first_set_against_passages_that_drop_nothing(
    tmp_path: Path, grad_cache: bool
) -> None:
    ends = []
    for name, dropped in (("with", 0.5), ("without", 0.0)):
        bench = TwoTowers(
            tmp_path / name,
            train=replace(TRAIN, max_steps=3, towers="query", grad_cache=grad_cache),
            refresh=RefreshConfig(trigger="never"),
        )
        trainer = bench.trainer()
        learner = trainer._learners["retriever"]
        assert isinstance(learner, RetrieverLearner)
        for module in learner.batch_step.encoder.passage.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropped
        trainer.run()
        ends.append(load_encoder(model_folder(bench.newest())))
    assert ends[0].weights_sha256() == ends[1].weights_sha256()
    assert ends[0].query.weights_sha256() != ends[0].passage.weights_sha256()


def test_passages_of_an_adopted_set_are_looked_up_and_not_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = TwoTowers(tmp_path, train=replace(TRAIN, towers="query"), refresh=RefreshConfig(trigger="once"))
    encoded: list[int] = []
    forward = DualEncoder.forward

    def spied(self: DualEncoder, queries: list[list[int]], passages: list[list[int]], budget: int) -> object:
        encoded.append(len(passages))
        return forward(self, queries, passages, budget)

    monkeypatch.setattr(DualEncoder, "forward", spied)
    bench.run()
    assert set(encoded) == {0}


def test_one_tied_tower_cannot_stay_and_move(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tied = false"):
        Bench(tmp_path, train=replace(TRAIN, towers="query")).run()


def test_drawn_negatives_change_what_is_learned(tmp_path: Path) -> None:
    weights = {}
    for drawn in (None, 2):
        train = replace(TRAIN, num_negatives=1, drawn_negatives=drawn, max_steps=2)
        bench = Bench(tmp_path / str(drawn), train=train, dropout=0.0)
        bench.run()
        weights[drawn] = bench.weights()
    assert weights[None] != weights[2]


# ---- the temperature, and staleness


def test_a_learned_temperature_is_resumed(tmp_path: Path) -> None:
    loss = LossConfig(temperature=0.2, temperature_schedule="learned")
    refresh = RefreshConfig(trigger="steps:3", adopt="scheduled", lag=0)
    whole = Bench(tmp_path / "whole", loss=loss, refresh=refresh)
    whole.run()
    broken = Bench(tmp_path / "broken", loss=loss, refresh=refresh, hears=stopping_at("step", 4))
    assert broken.run().reason == "interrupted"
    assert broken.run().reason == "finished"
    assert broken.weights() == whole.weights()
    temperatures = [told["temperature"] for told in whole.told("step")]
    assert temperatures[0] == 0.2 and len(set(temperatures)) > 3


class AnswersTheFirst(MinesAtOnce):
    """A refresher that mines from checkpoint 0 and then is busy for long."""

    def marked(self, checkpoint: Artifact) -> None:
        if checkpoint.facts["step"] == 0:
            super().marked(checkpoint)


PROBED = RefreshConfig(trigger="steps:3", probe_every=2, probe_queries=3, probe_depth=12)


def test_staleness_is_told_and_changes_nothing(tmp_path: Path) -> None:
    probed, silent = Bench(tmp_path / "on", refresh=PROBED), Bench(tmp_path / "off")
    probed.run(), silent.run()
    told = probed.told("staleness")
    assert [one["step"] for one in told] == [2, 4, 6]
    assert all(0 <= one["overlap"] <= 1 for one in told)
    assert probed.weights() == silent.weights()
    assert silent.told("staleness") == []


def test_measured_staleness_marks_a_checkpoint_once_a_set(tmp_path: Path) -> None:
    """The stand-in's scores are made up, so the first probe finds them stale; each set is adopted at once."""
    bench = Bench(tmp_path, refresh=replace(PROBED, trigger="staleness:0.01"))
    bench.run()
    stale = [one["step"] for one in bench.told("staleness") if 1 - one["overlap"] > 0.01]
    assert stale and bench.refresher.marks == [0, *stale, TRAIN.max_steps]
    waiting = Bench(tmp_path / "waiting", refresh=replace(PROBED, trigger="staleness:0.01"))
    waiting.refresher = AnswersTheFirst(waiting.store)
    waiting.run()
    assert len(waiting.told("staleness")) == 1  # no second mark while the first is being answered


def by_source(folder: Path, train: TrainConfig, ranker: bool = False) -> tuple[Bench, list[dict[str, Any]]]:
    """Run a training whose sets have two sources; return it and what its steps tell of them."""
    bench = Bench(folder, train=train)
    bench.refresher.sources = {"ann": 1, "bm25": 8}
    if ranker:
        bench.ranker, bench.phases = bench.ranking(), PhasesConfig(1, 1)
    bench.run()
    return bench, [told["by_source"] for told in bench.told("step")]


@pytest.mark.parametrize("grad_cache", [False, True])
def test_steps_tell_what_each_source_gave_and_learn_the_same(tmp_path: Path, grad_cache: bool) -> None:
    train = replace(TRAIN, max_steps=3, grad_cache=grad_cache)
    told, plain = by_source(tmp_path / "told", train), Bench(tmp_path / "plain", train=train)
    plain.run()
    assert all("by_source" not in step for step in plain.told("step")), "a single source has all of it"
    for step in told[1]:
        assert {*step} == {"ann", "bm25"} and {*step["ann"]} == {"drawn", "gradient", "score"}
        assert 5 < step["ann"]["drawn"] <= 8 and 2 < step["bm25"]["drawn"] <= 4, "two batches of four queries"
        assert 0 < step["bm25"]["gradient"] < step["ann"]["gradient"] <= 1, "twice as many pull more"
        assert -1 <= step["ann"]["score"] <= 1
    newest = [bench.store.checkpoints.get() for bench in (told[0], plain)]
    assert newest[0] is not None and newest[1] is not None
    assert newest[0].facts["weights_sha256"] == newest[1].facts["weights_sha256"]


def test_a_ranker_s_steps_tell_of_its_own_negatives(tmp_path: Path) -> None:
    bench, told = by_source(tmp_path, replace(TRAIN, max_steps=2), ranker=True)
    assert [step["phase"] for step in bench.told("step")] == ["ranker", "retriever"]
    assert {*told[0]["ann"]} == {"drawn", "gradient"} and {*told[1]["ann"]} == {"drawn", "gradient", "score"}
    assert told[0]["ann"]["gradient"] + told[0]["bm25"]["gradient"] == pytest.approx(1, abs=1e-3)


class Clustered(Bench):
    """A bench whose batches are NGAME's."""

    def retriever_parts(self) -> RetrieverParts:
        return ngame(self, super().retriever_parts())


def test_ngame_s_clusters_encode_nothing_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three epochs, two of them with clusters: each batch's queries and passages pass the model once, as in order."""
    encode, calls, plans = DualEncoder._fast_vectors, list[tuple[int, int]](), list[bool]()
    plan = ClusterPlan.plan

    def counted(model: DualEncoder, side: Any, shares: Any, budget: int) -> list[torch.Tensor]:
        queries, passages = shares
        calls.append((len(queries), len(passages)))
        return encode(model, side, shares, budget)

    def noted(planner: ClusterPlan, epoch: int, bank: FloatArray | None = None) -> Any:
        plans.append(bank is not None)
        return plan(planner, epoch, bank)

    monkeypatch.setattr(DualEncoder, "_fast_vectors", counted)
    monkeypatch.setattr(ClusterPlan, "plan", noted)
    train = replace(TRAIN, accumulation=1, max_steps=15)
    for kind in (Bench, Clustered):
        bench = kind(tmp_path / kind.__name__, train=train, refresh=RefreshConfig(trigger="never"))
        assert (len(bench.queries), bench.run().reason) == (20, "finished")
        assert calls == 15 * [(4, 4)]
        calls.clear()
    assert plans.count(True) == 2
