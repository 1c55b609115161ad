"""Who may teach whom, what a teacher says of a batch, and that a run with one learns, caches and resumes exactly."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from retriever.checkpoint import model_folder
from retriever.encoder import ModelConfig, create_encoder, load_encoder
from retriever.errors import CorruptError, InputError
from retriever.examples import Batch
from retriever.inference import TOKEN_BUDGETS
from retriever.losses.contrastive import LossConfig
from retriever.objective import Objective
from retriever.protocols import FloatArray
from retriever.ranks import Ranks
from retriever.refresh_policy import RefreshConfig
from retriever.teacher import STATE, Anchor, Taught, Teacher, TeacherConfig, asking_encoder, asking_ranker, group_of
from tests.retriever.training_stand_ins import TRAIN, Bench, ignore, stopping_at
from tests.stand_ins import OverlapRanker
from tests.tiny_model import write_tiny_model

pytestmark = pytest.mark.usefixtures("own_precision")

CPU = torch.device("cpu")


# ---------------------------------------------------------------------------------------------- what can be joined


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "r", "weight": 0.0}, "weight must be above 0"),
        ({"name": "r", "temperature": 0.0}, "temperature and student_temperature must be above 0"),
        ({"name": "r", "depth": 0}, "depth must be at least 1"),
        ({"name": "r", "loss": "ar2", "adversarial": 1.5}, r"adversarial must lie in \[0, 1\]"),
        ({"name": "anchor", "momentum": 1.0}, r"momentum must lie in \(0, 1\)"),
        ({"name": "r", "loss": "embedding"}, 'loss = "embedding" needs vectors'),
        ({"name": "anchor", "loss": "ar2"}, "it needs a ranker"),
        ({"name": "r", "kind": "encoder", "loss": "ar2"}, "it needs a ranker"),
        ({"name": "r", "live": True, "over": "batch"}, "scores groups alone"),
        ({"name": "ranker", "over": "batch"}, "scores groups alone"),
        ({"name": "anchor", "loss": "embedding", "over": "batch"}, "takes all texts"),
        ({"name": "r", "head": True, "contrastive": 0.0}, "head: with contrastive = 0"),
        ({"name": "r", "adversarial": 0.2}, 'adversarial: nothing reads it with loss = "kl", kind = "ranker"'),
        ({"name": "r", "loss": "cosent", "temperature": 2.0}, "temperature: nothing reads it"),
        ({"name": "anchor", "loss": "embedding", "student_temperature": 0.1}, "student_temperature: nothing reads it"),
        ({"name": "r", "momentum": 0.9}, "momentum: nothing reads it"),
        ({"name": "anchor", "kind": "encoder"}, 'kind: nothing reads it with loss = "kl", name = "anchor"'),
        ({"name": "ranker", "live": True}, "live: nothing reads it"),
        ({"name": "r", "live": True, "depth": 5}, "depth: nothing reads it"),
        ({"name": "r", "kind": "encoder", "label": 1}, "label: nothing reads it"),
        ({"name": "r", "kind": "encoder", "max_length": 64}, "max_length: nothing reads it"),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_reason(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"^\[teacher\] .*{message}"):
        TeacherConfig(**keys)


def test_who_gives_vectors_and_whose_scores_are_stored() -> None:
    configs = [
        TeacherConfig("r"),
        TeacherConfig("r", live=True),
        TeacherConfig("ranker"),
        TeacherConfig("e", kind="encoder"),
        TeacherConfig("anchor", loss="embedding"),
    ]
    assert [one.is_stored for one in configs] == [True, False, False, False, False]
    assert [one.gives_vectors for one in configs] == [False, False, False, True, True]


# ------------------------------------------------------------------------------------------------ what teachers say


def batch() -> Batch:
    """Two queries, four passages; the second query has one negative of its own."""
    hard = np.array([[False, False, True, True], [False, False, False, True]])
    rows = np.arange(4, dtype=np.int32)
    return Batch(rows[:2], rows, np.array([0, 1]), np.ones((2, 4), np.bool_), hard)


TEXTS = (["baka beki", "bodu"], ["baka", "bodu baka", "beki baka", "bilo"])


@pytest.fixture
def ranks() -> Ranks:
    return Ranks(Accelerator(cpu=True))


def test_a_ranker_reads_each_query_with_its_group_alone(ranks: Ranks) -> None:
    asked: list[tuple[str, str]] = []

    def score(queries: Sequence[str], passages: Sequence[str]) -> FloatArray:
        asked.extend(zip(queries, passages, strict=True))
        return OverlapRanker().score(queries, passages)

    taught = asking_ranker(score)(batch(), TEXTS, ranks)
    group = [(0, 0), (0, 2), (0, 3), (1, 1), (1, 3)]
    assert asked == [(TEXTS[0][i], TEXTS[1][j]) for i, j in group]
    assert group_of(batch()).sum() == 5 and taught.queries is None
    for i in range(2):
        for j in range(4):
            score_here = taught.scores[i, j].item()
            if (i, j) in group:
                assert score_here == OverlapRanker().score([TEXTS[0][i]], [TEXTS[1][j]])[0]
            else:
                assert np.isnan(score_here)


class Turned:
    """Vectors by arithmetic."""

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Return float32 [n, 2]."""
        return np.array([[len(text), 1] for text in texts], np.float32)

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        """Return float32 [n, 2]."""
        return np.array([[1, len(text)] for text in texts], np.float32)


def test_an_encoder_compares_all_with_all(ranks: Ranks) -> None:
    taught = asking_encoder(Turned())(batch(), TEXTS, ranks)
    lengths = [[len(query) + len(passage) for passage in TEXTS[1]] for query in TEXTS[0]]
    assert taught.scores.tolist() == lengths
    assert taught.queries is not None and taught.queries.shape == (2, 2)


def test_before_the_first_set_stored_scores_are_missing_and_without_a_teacher_nothing_is_said(ranks: Ranks) -> None:
    said = Teacher(TeacherConfig("r")).teach(batch(), TEXTS, ranks)
    assert said is not None and said.scores.isnan().all() and said.scores.shape == (2, 4)
    assert Teacher().teach(batch(), TEXTS, ranks) is None


# ---------------------------------------------------------------------------------------------------- the objective


def loss_of(config: TeacherConfig, taught: Taught, loss: LossConfig | None = None) -> tuple[float, dict[str, float]]:
    torch.manual_seed(1)
    queries, passages = (torch.nn.functional.normalize(torch.randn(n, 6), dim=1) for n in (2, 4))
    objective = Objective(loss or LossConfig(temperature=0.5), teaching=config)
    return objective(queries, passages, batch(), 0, None, taught).item(), objective.facts


def test_both_terms_are_told_and_weighed() -> None:
    taught = Taught(torch.tensor([[2.0, 1.0, 0.5, torch.nan], [0.0, 1.0, 3.0, 2.0]]))
    value, facts = loss_of(TeacherConfig("r", weight=0.3, contrastive=0.2), taught)
    assert value == pytest.approx(0.3 * facts["teacher_loss"] + 0.2 * facts["contrastive_loss"])
    alone, _ = loss_of(TeacherConfig("r", contrastive=0.0), taught)
    assert alone == pytest.approx(facts["teacher_loss"]) and alone > 0
    assert facts["unscored"] == 1


def test_a_group_is_a_part_of_the_batch() -> None:
    taught = Taught(torch.tensor([[2.0, 1.0, 0.5, 0.1], [0.0, 1.0, 3.0, 2.0]]))
    values = {over: loss_of(TeacherConfig("r", over=over), taught)[1]["teacher_loss"] for over in ("group", "batch")}
    others = Taught(torch.tensor([[2.0, 9.0, 0.5, 0.1], [-9.0, 1.0, -9.0, 2.0]]))  # outside the groups
    moved = {over: loss_of(TeacherConfig("r", over=over), others)[1]["teacher_loss"] for over in ("group", "batch")}
    assert moved["group"] == values["group"] and moved["batch"] != values["batch"]


MORE: tuple[dict[str, Any], ...] = ({}, {"weight": 2.0})


@pytest.mark.parametrize("name", ["kl", "margin_mse", "soft_infonce", "cosent", "ar2"])
def test_each_loss_and_both_temperatures_are_read(name: Any) -> None:
    taught = Taught(torch.tensor([[0.2, 0.1, -0.5, 0.1], [0.0, 0.7, 0.3, 0.4]]))
    keys: dict[str, Any] = {"loss": name}
    values = [loss_of(TeacherConfig("r", **keys, **more), taught)[1]["teacher_loss"] for more in MORE]
    assert values[0] == values[1] > 0
    hotter = loss_of(TeacherConfig("r", **keys, student_temperature=0.7), taught)[1]["teacher_loss"]
    assert hotter != values[0]
    same = loss_of(TeacherConfig("r", **keys, student_temperature=0.5), taught)[1]["teacher_loss"]
    assert same == pytest.approx(values[0]), "[loss] temperature is 0.5"
    if name != "cosent":
        assert loss_of(TeacherConfig("r", **keys, temperature=3.0), taught)[1]["teacher_loss"] != values[0]


def test_similarities_are_divided_by_the_students_temperature_and_log_odds_by_none() -> None:
    taught = Taught(torch.tensor([[0.2, 0.1, -0.5, 0.1], [0.0, 0.7, 0.3, 0.4]]))
    by_kind = [
        (TeacherConfig("e", kind="encoder"), 0.5),
        (TeacherConfig("r"), 1.0),
    ]
    for config, temperature in by_kind:
        given = replace(config, temperature=temperature)
        assert loss_of(config, taught)[0] == pytest.approx(loss_of(given, taught)[0])


def test_a_grade_is_a_probability_of_a_ranker_and_a_similarity_of_an_encoder() -> None:
    taught = Taught(torch.tensor([[0.9, 0.1, 0, 0], [0.0, 0.9, 0, 0]]))
    as_encoder, as_ranker = (
        loss_of(TeacherConfig("t", kind=kind, loss="soft_infonce", over="batch"), taught)[1]["teacher_loss"]
        for kind in ("encoder", "ranker")
    )
    odds = Taught(torch.logit(torch.tensor([[0.9, 0.1, 0, 0], [0.0, 0.9, 0, 0]]).clamp(1e-6)))
    again = loss_of(TeacherConfig("t", loss="soft_infonce", over="batch"), odds)[1]["teacher_loss"]
    assert again == pytest.approx(as_encoder) and as_ranker != pytest.approx(as_encoder)


def test_a_learned_temperature_has_a_gradient_from_the_teacher() -> None:
    objective = Objective(
        LossConfig(temperature=0.5, temperature_schedule="learned"), teaching=TeacherConfig("r", contrastive=0.0)
    )
    taught = Taught(torch.tensor([[2.0, 1.0, 0.5, 0.1], [0.0, 1.0, 3.0, 2.0]]))
    torch.autograd.backward(objective(torch.eye(2, 6), torch.eye(4, 6), batch(), 0, None, taught))
    assert objective.learned is not None and objective.learned.log.grad is not None
    assert objective.learned.log.grad.item() != 0


# ------------------------------------------------------------------------------------------------------- the anchor


def anchor_of(bench: Bench, momentum: float = 0.5) -> Anchor:
    return Anchor(bench.model(), momentum, CPU)


def test_an_anchor_follows_slowly_and_has_no_dropout(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "a")
    write_tiny_model(tmp_path / "b", seed=1)
    configs = [ModelConfig(str(tmp_path / name), dropout=0.5) for name in "ab"]
    anchor, other = Anchor(create_encoder(configs[0]), 0.75, CPU), create_encoder(configs[1])
    start = create_encoder(configs[0])
    texts = ["baka beki", "bodu duku bilo"]
    np.testing.assert_array_equal(anchor.encode_queries(texts), anchor.encode_queries(texts))
    before = anchor.encode_passages(texts)
    anchor.follow(other)
    assert not np.allclose(anchor.encode_passages(texts), before, atol=1e-4), "vectors are of the weights as they are"
    anchor.save(tmp_path)
    saved = load_file(tmp_path / STATE)
    for (name, first), (_, second) in zip(start.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(saved[name], 0.75 * first + 0.25 * second)
    again = Anchor(create_encoder(configs[0]), 0.75, CPU)
    assert again.restore(tmp_path)
    np.testing.assert_array_equal(again.encode_queries(texts), anchor.encode_queries(texts))
    assert not again.restore(tmp_path / "a")
    (tmp_path / STATE).write_bytes(b"none")
    with pytest.raises(CorruptError, match=r"anchor\.safetensors: cannot be resumed"):
        again.restore(tmp_path)


# ----------------------------------------------------------------------------------------------------- whole runs


def anchored(bench: Bench) -> Teacher:
    anchor = anchor_of(bench)
    return Teacher(TeacherConfig("anchor", momentum=0.5, over="batch"), asking_encoder(anchor), anchor=anchor)


def frozen(bench: Bench) -> Teacher:
    """The model that training starts from draws vectors to where they were."""
    config = TeacherConfig("anchor", loss="embedding", weight=100.0)
    return Teacher(config, asking_encoder(anchor_of(bench)))


def ranked(bench: Bench) -> Teacher:
    return Teacher(TeacherConfig("tiny", loss="ar2", contrastive=0.0, live=True), asking_ranker(OverlapRanker().score))


@pytest.mark.parametrize("teacher", [anchored, ranked])
def test_a_run_with_a_teacher_resumes_exactly(tmp_path: Path, teacher: Callable[[Bench], Teacher]) -> None:
    refresh = RefreshConfig(trigger="steps:3", adopt="scheduled", lag=0)
    whole = Bench(tmp_path / "whole", refresh=refresh, teacher=teacher)
    broken = Bench(tmp_path / "broken", refresh=refresh, teacher=teacher, hears=stopping_at("step", 4))
    bare = Bench(tmp_path / "bare", refresh=refresh)
    whole.run(), bare.run()
    assert broken.run().reason == "interrupted"
    broken.hears = ignore
    assert broken.run().reason == "finished"
    assert broken.weights() == whole.weights() != bare.weights()
    if teacher is anchored:
        one, other = (load_file(bench.newest().path / "training" / STATE) for bench in (whole, broken))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_anchor_whose_state_is_missing_begins_anew_and_that_is_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path, hears=stopping_at("step", 4))
    bench.run()
    bench.hears, bench.teacher = ignore, anchored
    bench.run()
    assert any("[teacher] keep; that begins anew" in one["message"] for one in bench.told("warning"))


@pytest.mark.parametrize("teacher", [anchored, ranked])
def test_grad_cache_gives_the_gradients_of_the_whole_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: Callable[[Bench], Teacher]
) -> None:
    monkeypatch.setitem(TOKEN_BUDGETS, "cpu", 24)
    train = replace(TRAIN, max_steps=3, learning_rate=1e-5, warmup_steps=0, max_grad_norm=1e9)
    found = []
    for cached in (False, True):
        bench = Bench(tmp_path / str(cached), train=replace(train, grad_cache=cached), teacher=teacher, dropout=0.0)
        bench.run()
        found.append(load_file(bench.newest().path / "training/optimizer.safetensors"))
    means = [name for name in found[0] if "exp_avg" in name]
    assert max(float(found[0][name].abs().max()) for name in means) > 1e-3
    assert max(float((found[0][name] - found[1][name]).abs().max()) for name in means) < 1e-5


def test_a_frozen_anchor_holds_the_model_where_it_was(tmp_path: Path) -> None:
    """Against forgetting: with the anchor vectors move less than without."""
    moved = []
    for name, teacher in (("free", lambda bench: Teacher()), ("held", frozen)):
        bench = Bench(tmp_path / name, teacher=teacher, train=replace(TRAIN, max_steps=20), dropout=0.0)
        bench.run()
        first, last = (load_encoder(model_folder(one)) for one in (bench.store.checkpoints.at(0), bench.newest()))
        vectors = [Anchor(one, 0.5, CPU).encode_passages(bench.corpus.texts(range(20))) for one in (first, last)]
        moved.append(float(np.linalg.norm(vectors[1] - vectors[0], axis=1).mean()))
    assert moved[1] < 0.5 * moved[0]


def test_a_ranker_teaches_its_order(tmp_path: Path) -> None:
    """With the teacher's term alone the student's margin comes to agree with the ranker's."""
    config = TeacherConfig("tiny", loss="kl", contrastive=0.0, live=True, temperature=0.5)
    bench = Bench(
        tmp_path,
        train=replace(TRAIN, max_steps=40, learning_rate=3e-3),
        teacher=lambda bench: Teacher(config, asking_ranker(OverlapRanker().score)),
        dropout=0.0,
    )
    bench.run()
    losses = [one["teacher_loss"] for one in bench.told("step")]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert {one["unscored"] for one in bench.told("step")} == {0}
