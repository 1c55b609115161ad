"""A ranker that learns beside the retriever or alone: whose weights change, what is saved, what a resume repeats."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from retriever.errors import CorruptError, InputError
from retriever.losses.ranking import RankingLossConfig
from retriever.optimiser import learning_rate
from retriever.phases import PhasesConfig
from retriever.ranker import RankerConfig, load_ranker, start_ranker
from retriever.ranker_learner import RankerLearner, RankerTrainConfig
from retriever.ranker_step import groups_of
from retriever.refresh_policy import RefreshConfig
from retriever.scoring import TorchRanker
from retriever.teacher import Teacher, TeacherConfig
from tests.retriever.training_stand_ins import TRAIN, Bench, Counted, InOrder, Killed, ignore, killing_at, stopping_at
from tests.tiny_ranker import write_tiny_ranker

pytestmark = pytest.mark.usefixtures("own_precision")

LAST = TRAIN.max_steps
TURNS = PhasesConfig(2, 3)
EVERY = replace(TRAIN, save_every=1)
TEXTS = (["baka", "bala beki"], ["boka", "bola boli bolo"])


def bench(folder: Path, phases: PhasesConfig = TURNS, **settings: Any) -> Bench:
    """Two steps of the ranker, three of the retriever, and so on, with dropout and two batches a step."""
    made = Bench(folder, phases=phases, **settings)
    made.ranker = made.ranking()
    return made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    AcceleratorState._reset_state(True)
    made = bench(tmp_path_factory.mktemp("undisturbed"), train=EVERY)
    made.run()
    return made


def learner(made: Bench) -> RankerLearner:
    found = made.trainer()._learners["ranker"]
    assert isinstance(found, RankerLearner)
    return found


# ---- phases


def test_in_a_phase_only_one_model_s_weights_change(undisturbed: Bench) -> None:
    saved = undisturbed.both_weights()
    assert [step for step, _, _ in saved] == list(range(LAST + 1))
    for (step, retriever, ranker), (_, after, ranker_after) in pairwise(saved):
        of_ranker = TURNS.learner_at(step) == "ranker"
        assert ((retriever == after), (ranker == ranker_after)) == (of_ranker, not of_ranker)


def test_each_has_a_schedule_and_batches_of_its_own(undisturbed: Bench) -> None:
    told = undisturbed.told("step")
    assert [one["phase"] for one in told] == ["ranker"] * 2 + ["retriever"] * 3 + ["ranker"] * 2
    assert undisturbed.ranker is not None
    for name, peak, warmup, steps in (("ranker", 1e-3, 1, 4), ("retriever", TRAIN.learning_rate, 2, 3)):
        rates = [one["learning_rate"] for one in told if one["phase"] == name]
        assert rates == [learning_rate(step, peak, warmup, steps) for step in range(steps)]
    assert [position for position, _ in undisturbed.ranker_draws] == list(range(8))
    assert [position for position, _ in undisturbed.draws] == list(range(6))
    assert undisturbed.adoptions() == [(0, 0), (3, 1), (6, 2)]
    assert [number for _, number in undisturbed.ranker_draws] == [0] * 4 + [1, 1, 2, 2]


def test_a_phase_of_no_steps_leaves_the_retriever_as_it_was(tmp_path: Path) -> None:
    alone = bench(tmp_path, PhasesConfig(5, 0), train=EVERY, refresh=RefreshConfig(trigger="once"))
    assert alone.run().reason == "finished"
    saved = alone.both_weights()
    assert len({retriever for _, retriever, _ in saved}) == 1
    assert len({ranker for _, _, ranker in saved}) == LAST + 1
    assert saved[0][1] == alone.model().weights_sha256()
    assert alone.draws == []


def test_the_retriever_s_first_steps_are_those_of_a_run_without_a_ranker(tmp_path: Path) -> None:
    """Nothing of the ranker reaches it but the seed of dropout, which is that of the run's step."""
    once = RefreshConfig(trigger="once")
    beside = bench(tmp_path / "beside", PhasesConfig(2, 5), dropout=0.0, refresh=once)
    beside.run()
    alone = Bench(tmp_path / "alone", train=replace(TRAIN, max_steps=5), dropout=0.0, refresh=once)
    alone.run()
    assert beside.weights() == alone.weights()


# ---- what a step does


def test_weights_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """AdamW by hand: listwise cross-entropy of each group, clipped, at each step's rate."""
    config = replace(TRAIN, max_steps=3, max_grad_norm=0.5)
    made = bench(tmp_path, PhasesConfig(1, 0), train=config, dropout=0.0, refresh=RefreshConfig(trigger="once"))
    made.run()
    parts = made.ranker_parts()
    assert parts is not None
    ranker = parts.model.train()
    optimizer = torch.optim.AdamW(ranker.parameters(), weight_decay=0.0)
    planner, source = InOrder(len(made.queries), 3), Counted(0, len(made.corpus), [])
    for step in range(3):
        for place in (2 * step, 2 * step + 1):
            epoch, row = divmod(place, len(planner.plan(0)))
            rows = planner.plan(epoch)[row]
            batch = parts.examples.batch(rows, epoch, source.draw(rows, place))
            queries, passages = parts.examples.texts(batch)
            losses = []
            for query, columns, kept in zip(queries, *groups_of(batch, 2), strict=True):
                read = [passages[column] for column in columns[kept]]
                logits = ranker.classifier(**ranker.pad(ranker.tokenize([query] * len(read), read)[0])).logits
                losses.append(cross_entropy(logits[:, 0][None], torch.tensor([0])))
            torch.autograd.backward(torch.stack(losses).mean() / 2)
        torch.nn.utils.clip_grad_norm_(ranker.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = learning_rate(step, 1e-3, 1, 3)
        optimizer.step()
        optimizer.zero_grad()
    found = load_ranker(RankerConfig(str(made.newest().path / "ranker"))).state_dict()
    expected = ranker.state_dict()
    start = load_ranker(RankerConfig(str(tmp_path / "ranker"))).state_dict()
    # Means: where a gradient is zero but for rounding, AdamW makes a step of the rounding.
    gaps = torch.cat([(found[name] - expected[name]).abs().flatten() for name in start])
    moves = torch.cat([(expected[name] - start[name]).abs().flatten() for name in start])
    assert gaps.mean() < 1e-6
    assert moves.mean() > 1e-4


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    config = replace(TRAIN, max_steps=40, save_every=40)
    made = bench(tmp_path, PhasesConfig(1, 0), train=config, dropout=0.0, refresh=RefreshConfig(trigger="once"))
    made.run()
    losses = [told["loss"] for told in made.told("step")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_bf16_trains_and_keeps_float32_weights(tmp_path: Path, architecture: str) -> None:
    """By the fast path, and by transformers' under autocast, which is said."""
    config = replace(TRAIN, max_steps=2, precision="bf16")
    made = bench(tmp_path, PhasesConfig(1, 0), train=config, refresh=RefreshConfig(trigger="once"))
    assert made.ranker is not None
    made.ranker = replace(made.ranker, name=str(write_tiny_ranker(tmp_path / architecture, architecture)), dropout=None)
    assert made.run().reason == "finished"
    saved = load_ranker(RankerConfig(str(made.newest().path / "ranker")))
    assert {parameter.dtype for parameter in saved.parameters()} == {torch.float32}
    assert len({ranker for _, _, ranker in made.both_weights()}) == 2
    warned = [told["message"] for told in made.told("warning")]
    assert len(warned) == (architecture == "gpt2") and all("slower than the fast one" in one for one in warned)


def test_scores_are_the_present_log_odds_without_dropout(tmp_path: Path) -> None:
    """What a retriever's teacher asks for; a run's own ranker gives it at any step."""
    one = learner(bench(tmp_path))
    before = one.score(*TEXTS)
    assert np.array_equal(before, one.score(*TEXTS))
    plain = load_ranker(RankerConfig(str(tmp_path / "ranker"), activation="identity"))
    assert np.abs(before - TorchRanker(plain, device="cpu").score(*TEXTS)).max() < 1e-5
    print_before = one.fingerprint
    torch.manual_seed(0)
    one.step(0)
    assert np.abs(one.score(*TEXTS) - before).max() > 1e-4
    assert one.fingerprint != print_before
    assert one.score([], []).shape == (0,)
    with pytest.raises(ValueError, match="2 queries but 1 passages"):
        one.score(TEXTS[0], TEXTS[1][:1])


def test_a_teacher_s_margins_are_learned(tmp_path: Path) -> None:
    made = bench(tmp_path, PhasesConfig(1, 0), dropout=0.0, refresh=RefreshConfig(trigger="once"))
    assert made.ranker is not None
    made.ranker = replace(made.ranker, loss=RankingLossConfig("margin_mse"), teacher="a ranker")
    parts = made.ranker_parts()
    assert parts is not None
    asked: list[int] = []

    def teacher(queries: Any, passages: Any) -> Any:
        asked.append(len(queries))
        return np.array([len(passage) % 5 for passage in passages], np.float32)

    made.ranker_parts = lambda: replace(parts, teacher=teacher)  # type: ignore[method-assign]  # of this one bench
    made.run()
    assert len(asked) == 2 * LAST and min(asked) > 3


def test_pairs_that_are_cut_are_said_once(tmp_path: Path) -> None:
    made = bench(tmp_path)
    assert made.ranker is not None
    made.ranker = replace(made.ranker, max_length=8)
    made.run()
    assert [told["message"] for told in made.told("warning")] == [
        "the ranker reads some pairs of query and passage cut to [ranker] max_length = 8 tokens"
    ]


def test_a_loss_that_is_no_number_names_the_ranker(tmp_path: Path) -> None:
    made = bench(tmp_path)
    assert made.ranker is not None
    made.ranker = replace(made.ranker, loss=RankingLossConfig(temperature=1e-40))
    with pytest.raises(InputError, match=r"\[ranker\] the loss is nan at step 0; lower \[ranker\] learning_rate"):
        made.run()


# ---- checkpoints


def test_a_checkpoint_holds_a_ranker_that_loads_by_its_folder_alone(undisturbed: Bench) -> None:
    final = undisturbed.newest()
    final.verify()
    found = load_ranker(RankerConfig(str(final.path / "ranker")))
    facts = final.facts["ranker"]
    assert facts["fingerprint"] == found.fingerprint("fp32")
    assert (facts["max_length"], facts["activation"], facts["label"]) == (64, "sigmoid", 0)
    first = undisturbed.store.checkpoints.at(0).facts["ranker"]
    assert first["fingerprint"] == load_ranker(RankerConfig(str(undisturbed.folder / "ranker"))).fingerprint("fp32")


def check_same_end(made: Bench, undisturbed: Bench) -> None:
    assert made.both_weights()[-1] == undisturbed.both_weights()[-1]
    states = [json.loads((one.newest().path / "training" / "state.json").read_text()) for one in (made, undisturbed)]
    assert states[0] == states[1]
    for name in ("optimizer", "ranker_optimizer"):
        mine, theirs = (
            load_file(one.newest().path / "training" / f"{name}.safetensors") for one in (made, undisturbed)
        )
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("step", range(1, LAST))
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, undisturbed: Bench, step: int) -> None:
    """Within a phase of either, and between two."""
    made = bench(tmp_path, hears=stopping_at("step", step))
    assert made.run().step == step
    made.hears = ignore
    assert made.run().reason == "finished"
    check_same_end(made, undisturbed)
    assert made.ranker_draws == undisturbed.ranker_draws
    assert made.draws == undisturbed.draws


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("step", [1, 2, 4, 6])
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, undisturbed: Bench, step: int, every: int) -> None:
    made = bench(tmp_path, hears=killing_at("step", step), train=replace(TRAIN, save_every=every))
    with pytest.raises(Killed):
        made.run()
    made.hears = ignore
    assert made.run().reason == "finished"
    check_same_end(made, undisturbed)


@pytest.mark.parametrize(
    "name", ["ranker/config.json", "ranker/model.safetensors", "training/ranker_optimizer.safetensors"]
)
def test_a_ranker_that_is_damaged_cannot_be_resumed(tmp_path: Path, name: str) -> None:
    made = bench(tmp_path, hears=stopping_at("step", 3))
    made.run()
    checkpoint = made.newest()
    (checkpoint.path / name).unlink()
    state = json.loads((checkpoint.path / "training" / "state.json").read_text())
    with pytest.raises(CorruptError, match="cannot be resumed"):
        learner(made).restore(checkpoint, state["ranker"], None)


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_with_its_ranker_as_teacher_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, step: int) -> None:
    """AR2: the retriever learns from the ranker of the checkpoint, which stands still in its phase."""

    def taught(folder: Path, **settings: Any) -> Bench:
        return bench(folder, teacher=lambda bench: Teacher(TeacherConfig("ranker", loss="ar2")), **settings)

    whole, broken = taught(tmp_path / "whole", train=EVERY), taught(tmp_path / "broken", hears=killing_at("step", step))
    whole.run()
    with pytest.raises(Killed):
        broken.run()
    broken.hears = ignore
    assert broken.run().reason == "finished"
    check_same_end(broken, whole)
    for (at, retriever, ranker), (_, after, ranker_after) in pairwise(whole.both_weights()):
        of_ranker = TURNS.learner_at(at) == "ranker"
        assert ((retriever == after), (ranker == ranker_after)) == (of_ranker, not of_ranker)


def test_a_run_that_gains_or_loses_its_ranker_says_so(tmp_path: Path) -> None:
    made = bench(tmp_path, hears=stopping_at("step", 2))
    made.run()
    made.ranker, made.phases = None, PhasesConfig(0, 1)
    made.hears = stopping_at("step", 4)
    made.run()
    assert "holds a ranker that this run does not train" in made.told("warning")[0]["message"]
    assert "ranker" not in made.newest().facts and not (made.newest().path / "ranker").exists()
    made.ranker, made.phases, made.hears = made.ranking(), TURNS, ignore
    assert made.run().reason == "finished"
    said = [one["message"] for one in made.told("warning")[1:]]
    assert "trained without the ranker; that begins anew" in said[0]
    assert f"the first step of the ranker is step {TURNS.taken('ranker', 4)} of its schedule" in said[1]


# ---- where a ranker starts


def test_an_encoder_gets_a_fresh_head_that_the_seed_alone_decides(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Bench(tmp_path).folder / "tiny"
    state = torch.get_rng_state()
    capfd.readouterr()
    first, again, other = (start_ranker(RankerConfig(str(folder)), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.fingerprint("fp32") == again.fingerprint("fp32") != other.fingerprint("fp32")
    assert first.config.activation == "sigmoid" and first.config.label == 0
    differing = {
        name for name, weight in first.state_dict().items() if not torch.equal(weight, other.state_dict()[name])
    }
    assert {name.split(".")[1] for name in differing} == {"classifier"}
    assert first.classifier.config.num_labels == 1 and first.has_fresh_head
    assert capfd.readouterr().err == ""  # transformers would print a table of what is missing


def test_a_fresh_head_learns_and_is_saved_as_a_ranker(tmp_path: Path) -> None:
    made = bench(tmp_path, PhasesConfig(1, 0), refresh=RefreshConfig(trigger="once"))
    assert made.ranker is not None
    made.ranker = replace(made.ranker, name=str(made.folder / "tiny"))
    made.run()
    saved = load_ranker(RankerConfig(str(made.newest().path / "ranker")))
    assert saved.fingerprint("fp32") == made.newest().facts["ranker"]["fingerprint"]


def test_a_trained_ranker_starts_as_it_is(tmp_path: Path) -> None:
    config = RankerConfig(str(Bench(tmp_path).folder / "ranker"), prompt="boki ")
    started = start_ranker(config, 1)
    assert started.fingerprint("fp32") == load_ranker(config).fingerprint("fp32") and not started.has_fresh_head


def test_dropout_is_that_of_the_run_in_every_layer_and_the_head(tmp_path: Path) -> None:
    made = start_ranker(RankerConfig(str(Bench(tmp_path).folder / "ranker")), 1, 0.37)
    found = {module.p for module in made.modules() if isinstance(module, torch.nn.Dropout)}
    assert found == {0.37}
    assert made.classifier.config.attention_probs_dropout_prob == 0.37


def test_an_encoder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    folder = Bench(tmp_path).folder / "ranker"
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "layer.1.output.dense.weight" in name)
    save_file({name: weight for name, weight in weights.items() if name != lost}, folder / "model.safetensors")
    with pytest.raises(InputError, match=rf"holds no weights for {lost}; choose a ranker or an encoder"):
        start_ranker(RankerConfig(str(folder)), 1)


# ---- settings


@pytest.mark.parametrize(
    ("problem", "settings"),
    [
        ("max_length must", {"max_length": 0}),
        ("dropout must", {"dropout": 1.0}),
        *(("must be at least 1", {key: 0}) for key in ("batch_size", "num_negatives", "accumulation")),
        ("learning_rate must", {"learning_rate": 0.0}),
        ("warmup_steps must", {"warmup_steps": -1}),
        ("learns a teacher's margins", {"loss": RankingLossConfig("margin_mse")}),
        ("does not read its scores", {"teacher": "some/ranker"}),
    ],
)
def test_settings_that_contradict_themselves_are_refused(problem: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"\[ranker\] .*{problem}"):
        RankerTrainConfig("minilm", **settings)
