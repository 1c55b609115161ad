import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from retriever.examples import Batch
from retriever.losses.contrastive import LossConfig
from retriever.objective import Objective, _uniformity
from retriever.teacher import Taught, TeacherConfig


def batch() -> Batch:
    """Three queries, five passages, each query one hard negative."""
    hard = np.zeros((3, 5), np.bool_)
    hard[[0, 1, 2], [3, 4, 3]] = True
    return Batch(
        np.arange(3, dtype=np.int32), np.arange(5, dtype=np.int32), np.arange(3), np.ones((3, 5), np.bool_), hard
    )


def unit(count: int, seed: int) -> torch.Tensor:
    vectors = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1).requires_grad_()


def test_the_temperature_is_that_of_the_step() -> None:
    config = LossConfig(
        temperature=0.1, temperature_schedule="cosine", temperature_max=0.3, temperature_period=8, name="infonce"
    )
    objective = Objective(config)
    losses = [objective(unit(3, 0), unit(5, 1), batch(), step, None).item() for step in (0, 4, 8)]
    flat = [Objective(LossConfig(temperature=t))(unit(3, 0), unit(5, 1), batch(), 0, None).item() for t in (0.3, 0.1)]
    assert losses == pytest.approx([flat[0], flat[1], flat[0]], rel=1e-5)


def test_a_learned_temperature_has_a_gradient_and_survives_a_checkpoint() -> None:
    objective = Objective(LossConfig(temperature=0.5, temperature_schedule="learned"))
    torch.autograd.backward(objective(unit(3, 0), unit(5, 1), batch(), 0, None))
    assert objective.learned is not None and objective.learned.log.grad is not None
    whole = float(objective.learned.log.grad)
    objective.average(4)
    assert float(objective.learned.log.grad) == pytest.approx(whole / 4) and whole != 0
    other = Objective(LossConfig(temperature=0.2, temperature_schedule="learned"))
    other.restore(objective.state())
    assert other.temperature_at(0) == pytest.approx(0.5)


def test_without_a_learned_temperature_there_is_nothing_to_keep() -> None:
    objective = Objective(LossConfig())
    assert objective.state() is None and list(objective.parameters()) == []


@pytest.mark.parametrize("in_batch", [True, False])
def test_the_gradient_of_scores_is_kept_where_it_is_wanted(in_batch: bool) -> None:
    objective, tau, of = Objective(LossConfig(temperature=0.2, in_batch=in_batch)), 0.2, batch()
    if not in_batch:
        of = replace(of, allowed=of.hard | np.eye(3, 5, dtype=np.bool_))
    objective.keeps_gradient = True
    queries, passages = unit(3, 0), unit(5, 1)
    torch.autograd.backward(objective(queries, passages, of, 0, None))
    scores = (queries @ passages.T).detach().numpy().astype(np.float64)
    weights = np.exp(scores / tau) * of.allowed
    expected = (weights / weights.sum(axis=1, keepdims=True) - np.eye(3, 5)) / tau / 3
    np.testing.assert_allclose(objective.score_gradient(), expected, atol=1e-6)
    plain = Objective(LossConfig(temperature=0.2, in_batch=in_batch))
    again = [unit(3, 0), unit(5, 1)]
    torch.autograd.backward(plain(*again, of, 0, None))
    assert again[0].grad is not None and queries.grad is not None and torch.equal(again[0].grad, queries.grad)
    assert plain.score_gradient().size == 0


def test_a_guide_takes_out_what_it_finds_relevant() -> None:
    objective = Objective(LossConfig(guide="start", guide_max=0.5))
    scores = torch.zeros(3, 5)
    scores[0, 3] = 0.6  # query 0's hard negative looks relevant
    passages = unit(5, 1)
    torch.autograd.backward(objective(unit(3, 0)[:1], passages, first(batch()), 0, scores[:1]))
    assert passages.grad is not None and not passages.grad[3].any() and passages.grad[4].any()


def first(whole: Batch) -> Batch:
    return Batch(whole.query_rows[:1], whole.passage_rows, whole.positive[:1], whole.allowed[:1], whole.hard[:1])


def test_uniformity_of_many_vectors_is_that_of_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(1500, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    some = vectors[::3]
    expected = torch.pdist(some).square().mul(-2).exp().mean().log().item()
    seen: list[int] = []
    pdist = torch.pdist

    def counted(given: torch.Tensor) -> torch.Tensor:
        seen.append(len(given))
        return pdist(given)

    monkeypatch.setattr(torch, "pdist", counted)
    assert _uniformity(vectors) == pytest.approx(expected, rel=1e-6) and seen == [500]


def test_uniformity_and_tolerance_are_told() -> None:
    objective = Objective(LossConfig())
    queries, passages = unit(3, 0), unit(5, 1)
    objective(queries, passages, batch(), 0, None)
    rows = passages.detach().tolist()
    pairs = [math.exp(-2 * math.dist(one, other) ** 2) for i, one in enumerate(rows) for other in rows[:i]]
    assert objective.facts["uniformity"] == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)
    tolerance = (queries * passages[:3]).sum(1).mean().item()
    assert objective.facts["tolerance"] == pytest.approx(tolerance, rel=1e-5)
    assert objective.facts["temperature"] == 0.05


def test_a_teacher_s_head_keeps_its_term_from_what_is_served() -> None:
    """The contrastive term is of x, the teacher's of Wx; at first W changes nothing."""
    taught = Taught(torch.from_numpy(np.cos(np.arange(15.0)).reshape(3, 5)))
    config = TeacherConfig("r", loss="margin_mse", over="batch", head=True)
    objective = Objective(LossConfig(), config, 6).double()
    bare = Objective(LossConfig(), replace(config, head=False))
    queries, passages = unit(3, 0).double(), unit(5, 1).double()
    assert objective(queries, passages, batch(), 0, None, taught).item() == pytest.approx(
        bare(queries, passages, batch(), 0, None, taught).item()
    )
    assert objective.head is not None
    head = torch.nn.init.normal_(objective.head.weight)
    objective(queries, passages, batch(), 0, None, taught)
    bare(queries, passages, batch(), 0, None, taught)
    assert objective.facts["contrastive_loss"] == bare.facts["contrastive_loss"]
    bare(queries @ head.T, passages @ head.T, batch(), 0, None, taught)
    assert objective.facts["teacher_loss"] == pytest.approx(bare.facts["teacher_loss"])
