import json
import os
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from retriever.adoption import StaleError
from retriever.artifacts import BEST, Artifact
from retriever.checkpoint import model_folder
from retriever.encoder import load_encoder
from retriever.errors import InputError
from retriever.inference import TOKEN_BUDGETS
from retriever.losses.contrastive import LossConfig
from retriever.optimiser import learning_rate
from retriever.refresh_policy import RefreshConfig
from retriever.retriever_learner import EncodeQueries
from retriever.trainer import mark_best
from tests.retriever.training_stand_ins import REFRESH, TRAIN, Bench, Counted, Idle, InOrder, ignore, stopping_at

pytestmark = pytest.mark.usefixtures("own_precision")

LAST = TRAIN.max_steps


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A run from start to end."""
    AcceleratorState._reset_state(True)
    bench = Bench(tmp_path_factory.mktemp("undisturbed"))
    bench.run()
    return bench


# ---- one run


def test_a_run_ends_with_a_final_checkpoint(undisturbed: Bench) -> None:
    final = undisturbed.newest()
    assert (final.facts["step"], final.facts["final"], final.facts["refresh"]) == (LAST, True, True)
    assert final.parents["negatives"] == 2
    others = [undisturbed.store.checkpoints.at(number) for number in range(final.number)]
    expected = [(0, True), (3, True), (4, False), (6, True)]
    assert [(one.facts["step"], one.facts["refresh"]) for one in others] == expected
    assert not any(one.facts["final"] for one in others)
    assert len({one.facts["weights_sha256"] for one in (*others, final)}) == 5


def test_checkpoint_0_is_the_untrained_model_and_comes_before_the_first_step(undisturbed: Bench) -> None:
    first = undisturbed.store.checkpoints.at(0)
    assert first.facts["weights_sha256"] == undisturbed.model().weights_sha256()
    names = [name for name, _ in undisturbed.events]
    assert names.index("checkpoint") < names.index("adopted") < names.index("step")
    assert undisturbed.refresher.marks == [0, 3, 6, LAST]


@pytest.mark.parametrize(("trigger", "marks"), [("once", [0, LAST]), ("never", [LAST])])
def test_a_run_may_be_refreshed_once_or_never(tmp_path: Path, trigger: str, marks: list[int]) -> None:
    bench = Bench(tmp_path, refresh=RefreshConfig(trigger=trigger))
    bench.run()
    assert bench.refresher.marks == marks


def test_each_batch_is_drawn_from_the_set_in_use(undisturbed: Bench) -> None:
    assert undisturbed.adoptions() == [(0, 0), (3, 1), (6, 2)]
    expected = [(position, position // 2 // 3) for position in range(2 * LAST)]  # two batches a step
    assert undisturbed.draws == expected


def test_a_live_view_hears_all_it_shows(undisturbed: Bench) -> None:
    steps = undisturbed.told("step")
    assert [told["step"] for told in steps] == list(range(1, LAST + 1))
    assert {told["of"] for told in steps} == {LAST}
    assert [told["negatives"] for told in steps] == [0, 0, 0, 1, 1, 1, 2]
    assert [told["staleness"] for told in steps] == [1, 2, 3, 1, 2, 3, 1]
    assert steps[-1]["eta_seconds"] == 0 < steps[0]["eta_seconds"]
    assert [told["generation"] for told in undisturbed.told("adopted")] == [0, 1, 2]
    assert all(np.isfinite(told["loss"]) for told in steps)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, train=replace(TRAIN, max_steps=40, accumulation=1, learning_rate=5e-3, save_every=40), dropout=0.0
    )
    bench.refresh = RefreshConfig(trigger="steps:40")
    bench.run()
    losses = [told["loss"] for told in bench.told("step")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3


@pytest.mark.parametrize("in_batch", [True, False])
def test_weights_are_those_of_a_plain_loop(tmp_path: Path, in_batch: bool) -> None:
    """AdamW by hand: the mean of the accumulated batches' losses, clipped, at each step's rate."""
    config = replace(TRAIN, max_steps=3, max_grad_norm=0.5, warmup_steps=1)
    bench = Bench(tmp_path, train=config, loss=LossConfig(temperature=0.1, in_batch=in_batch), dropout=0.0)
    bench.run()
    model, examples = bench.model(), bench.examples()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    plan = InOrder(len(bench.queries), config.batch_size).plan(0)
    source = Counted(0, len(bench.corpus), [])
    for step in range(3):
        for part in range(2):
            place = 2 * step + part
            epoch, row = divmod(place, len(plan))
            rows = InOrder(len(bench.queries), config.batch_size).plan(epoch)[row]
            batch = examples.batch(rows, epoch, source.draw(rows, place))
            queries, passages = examples.texts(batch)
            q, p = model(model.tokenize("query", queries)[0], model.tokenize("passage", passages)[0], 4096)
            positive, allowed = torch.from_numpy(batch.positive), torch.from_numpy(batch.allowed)
            logits = (q @ p.T / 0.1).masked_fill(~allowed, float("-inf"))
            torch.autograd.backward(cross_entropy(logits, positive) / 2)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = [1e-3, 1e-3, 0.5e-3][step]
        optimizer.step()
        optimizer.zero_grad()
    trained, start = load_encoder(model_folder(bench.newest())).state_dict(), bench.model().state_dict()
    expected = model.state_dict()
    # Means: where a gradient is zero but for rounding, AdamW makes a step of the rounding.
    gaps = torch.cat([(trained[name] - expected[name]).abs().flatten() for name in start])
    moves = torch.cat([(expected[name] - start[name]).abs().flatten() for name in start])
    assert gaps.mean() < 1e-6
    assert moves.mean() > 1e-4


def test_dropout_is_at_work_while_training(tmp_path: Path) -> None:
    ends = {}
    for dropout in (0.0, 0.3):
        bench = Bench(tmp_path / str(dropout), train=replace(TRAIN, max_steps=1), dropout=dropout)
        bench.run()
        ends[dropout] = bench.weights()
    assert ends[0.0] != ends[0.3]


def test_the_gradient_reaches_another_query_s_hard_negative(tmp_path: Path) -> None:
    """STAR: what one query draws, the others learn from, too; without in_batch they do not."""
    negatives = Counted(0, 60, [])
    for in_batch in (True, False):
        bench = Bench(tmp_path, loss=LossConfig(in_batch=in_batch))
        rows = np.array([0, 1, 2, 3], np.int32)
        drawn = negatives.draw(rows, 0)
        batch = bench.examples().batch(rows, 0, drawn)
        torch.manual_seed(0)
        queries, passages = torch.randn(4, 8), torch.randn(len(batch.passage_rows), 8, requires_grad=True)
        positive, allowed = torch.from_numpy(batch.positive), torch.from_numpy(batch.allowed)
        logits = (queries[:1] @ passages.T / 0.1).masked_fill(~allowed[:1], float("-inf"))
        of_query_0 = cross_entropy(logits, positive[:1])
        torch.autograd.backward(of_query_0)
        assert passages.grad is not None
        of_query_1 = int(np.flatnonzero(batch.passage_rows == drawn.rows[1, 0])[0])
        assert bool(passages.grad[of_query_1].any()) == in_batch


@pytest.mark.parametrize(
    "how",
    [{"grad_cache": True}, {"gradient_checkpointing": True}, {"grad_cache": True, "gradient_checkpointing": True}],
)
def test_less_memory_gives_the_same_gradients_with_dropout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, bool]
) -> None:
    monkeypatch.setitem(TOKEN_BUDGETS, "cpu", 24)  # several micro-batches a side
    moments = []
    unlike: tuple[dict[str, Any], ...] = ({}, how)
    for extra in unlike:
        bench = Bench(tmp_path / str(len(extra)), train=replace(TRAIN, max_steps=1, **extra))
        bench.run()
        losses = [fields["loss"] for fields in bench.told("step")]
        moments.append((losses, load_file(bench.newest().path / "training" / "optimizer.safetensors")))
    (losses, expected), (others, found) = moments
    assert losses == pytest.approx(others, abs=1e-4)
    largest = max(float(value.abs().max()) for key, value in expected.items() if "exp_avg" in key)
    for key, value in expected.items():
        assert float((value - found[key]).abs().max()) < 1e-5 * max(1, largest), key
    assert largest > 1e-2


def test_a_model_that_the_fast_path_does_not_know_trains_all_the_same_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for known in (True, False):
        bench = Bench(tmp_path / str(known), dropout=0.0)
        if not known:
            monkeypatch.setattr("retriever.encoder.why_not_fast", lambda transformer: "it is a stand-in")
        bench.run()
        warned = [told["message"] for told in bench.told("warning")]
        assert len(warned) == (not known)
        assert all("it is a stand-in" in message for message in warned)
        ends.append(load_file(bench.newest().path / "model" / "model.safetensors"))
    fast, slow = ends
    # Means: where a gradient is zero but for rounding, AdamW makes a step of the rounding.
    assert float(torch.cat([(fast[name] - slow[name]).abs().flatten() for name in fast]).mean()) < 1e-6


def test_bf16_trains_and_keeps_float32_weights(tmp_path: Path) -> None:
    bench = Bench(tmp_path, train=replace(TRAIN, max_steps=2, precision="bf16"))
    assert bench.run().reason == "finished"
    model = load_encoder(model_folder(bench.newest()))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert bench.weights() != bench.store.checkpoints.at(0).facts["weights_sha256"]


# ---- the learning rate


def test_no_adoption_and_no_resumption_warms_the_rate_again(undisturbed: Bench, tmp_path: Path) -> None:
    expected = [learning_rate(step, TRAIN.learning_rate, TRAIN.warmup_steps, LAST) for step in range(LAST)]
    assert expected[2:] == sorted(expected[2:], reverse=True)
    assert [told["learning_rate"] for told in undisturbed.told("step")] == expected
    for checkpoint in map(undisturbed.store.checkpoints.at, range(1, 5)):
        saved = json.loads((checkpoint.path / "training" / "state.json").read_text())
        assert {group["lr"] for group in saved["retriever"]["groups"]} == {expected[checkpoint.facts["step"] - 1]}
    bench = Bench(tmp_path, hears=stopping_at("step", 4))
    bench.run()
    bench.hears = ignore
    bench.run()
    assert [told["learning_rate"] for told in bench.told("step")] == expected


# ---- adoption


def test_an_adoption_is_recorded_before_the_first_batch_is_drawn_from_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    seen: list[int] = []

    class Watched(Counted):
        def draw(self, query_rows: Any, step: int) -> Any:
            seen.append(bench.store.adoptions()[-1]["set"])
            return super().draw(query_rows, step)

    def open_source(artifact: Artifact, batches_per_turn: int, encode: EncodeQueries) -> Counted:
        return Watched(artifact.number, 60, bench.draws)

    bench.open_source = open_source  # type: ignore[method-assign]  # of this one bench
    bench.run()
    assert seen == [number for _, number in bench.draws]


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_scheduled_adopts_exactly_a_lag_after_each_mark(tmp_path: Path, lag: int) -> None:
    bench = Bench(tmp_path, refresh=RefreshConfig(trigger="steps:3", adopt="scheduled", lag=lag))
    bench.run()
    assert bench.adoptions() == [(lag, 0), (3 + lag, 1), (6 + lag, 2)][: 3 if lag == 0 else 2]
    assert bench.draws[0] == (2 * lag, 0)  # before, a batch has its own passages alone


def test_a_stale_run_stops_with_its_checkpoints_and_can_be_resumed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, refresh=replace(REFRESH, max_staleness=4, on_stale="stop"))
    working, bench.refresher = bench.refresher, Idle(bench.store)
    with pytest.raises(StaleError, match="5 steps stale"):
        bench.run()
    assert bench.newest().facts["step"] == 4
    bench.refresher = working
    working.marked(bench.store.checkpoints.at(1))
    assert bench.run().reason == "finished"


def test_who_waits_for_fresh_negatives_marks_the_checkpoint_that_brings_them(tmp_path: Path) -> None:
    config = RefreshConfig(trigger="steps:100", max_staleness=2, on_stale="wait")
    bench = Bench(tmp_path, refresh=config)
    assert bench.run().reason == "finished"
    assert bench.refresher.marks == [0, 3, 6, LAST]
    assert [step for step, _ in bench.adoptions()] == [0, 3, 6]


def test_a_checkpoint_that_waits_for_its_refresh_is_kept(tmp_path: Path) -> None:
    def age(event: str, fields: dict[str, Any], stop: Event) -> None:
        if event == "checkpoint":
            os.utime(bench.store.checkpoints.path(fields["number"]), (0, 0))

    bench = Bench(tmp_path, train=replace(TRAIN, keep_checkpoints=1), hears=age)
    bench.refresher = Idle(bench.store)
    bench.run()
    kept = [bench.store.checkpoints.at(number).facts for number in bench.store.checkpoints.numbers()]
    assert [(facts["step"], facts["refresh"]) for facts in kept] == [(0, True), (3, True), (6, True), (LAST, True)]


# ---- ends


def test_a_loss_that_is_no_number_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    bench = Bench(tmp_path, loss=LossConfig(temperature=1e-40))
    with pytest.raises(InputError, match=r"loss is nan at step 0; lower .*learning_rate"):
        bench.run()
    assert bench.store.checkpoints.numbers() == [0]


def test_patience_counts_generations_without_a_better_dev_metric(tmp_path: Path) -> None:
    values = {0: 0.5, 3: 0.4, 6: 0.5}
    bench = Bench(tmp_path, train=replace(TRAIN, patience=2), dev=values.get)
    outcome = bench.run()
    assert (outcome.reason, outcome.step) == ("stopped early", 6)
    final = bench.newest().facts
    assert (final["step"], final["final"], final["refresh"]) == (6, True, True)


@pytest.mark.parametrize("values", [{0: 0.5, 3: 0.4, 6: 0.6}, {}])
def test_a_better_metric_or_none_at_all_goes_on(tmp_path: Path, values: dict[int, float]) -> None:
    assert Bench(tmp_path, train=replace(TRAIN, patience=2), dev=values.get).run().reason == "finished"


@pytest.mark.parametrize("event", ["step", "adopted"])
def test_a_generation_is_counted_once_however_often_a_run_resumes(tmp_path: Path, event: str) -> None:
    values = {0: 0.5, 3: 0.4, 6: 0.4}
    bench = Bench(tmp_path, train=replace(TRAIN, patience=3), dev=values.get)
    for step in (3, 6):
        bench.hears = stopping_at(event, step)
        assert bench.run().reason == "interrupted"
    bench.hears = ignore
    assert bench.run().reason == "finished"


def test_best_of_the_checkpoints_is_the_one_behind_the_best_generation(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run()
    assert mark_best(bench.store) is None
    bench.store.generations.point(BEST, 1)
    number = mark_best(bench.store)
    best = bench.store.checkpoints.get(BEST)
    assert best is not None and best.number == number
    assert best.facts["step"] == 3


def test_a_second_trainer_on_the_store_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    def start_another(event: str, fields: dict[str, Any], stop: Event) -> None:
        if event == "step":
            bench.hears = ignore
            Bench(tmp_path).run()

    bench.hears = start_another
    with pytest.raises(Exception, match="already writing checkpoints"):
        bench.run()
