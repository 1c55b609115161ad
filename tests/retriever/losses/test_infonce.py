"""InfoNCE against scalar loops in float64, written from its formula, and mutants that those loops must tell apart."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from retriever.losses.infonce import info_nce

Rows = list[list[float]]
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
TEMPERATURE = 0.3


def reference(queries: Rows, passages: Rows, positive: list[int], allowed: list[list[bool]], t: float) -> float:
    """L = 1/b · Σ_i −log( exp(s_i⁺/τ) / Σ_{j allowed} exp(s_ij/τ) ), s the dot product."""
    total = 0.0
    for i, query in enumerate(queries):
        scores = [sum(a * b for a, b in zip(query, passage, strict=True)) for passage in passages]
        denominator = sum(math.exp(score / t) for j, score in enumerate(scores) if allowed[i][j])
        total += -math.log(math.exp(scores[positive[i]] / t) / denominator)
    return total / len(queries)


def slopes(queries: Rows, passages: Rows, positive: list[int], allowed: list[list[bool]], t: float) -> Rows:
    """The loss's derivative by each number of the queries, then of the passages: central differences."""
    step: float = 1e-6
    found: Rows = []
    for row in [*queries, *passages]:
        found.append([])
        for place, value in enumerate(row):
            row[place] = value + step
            above = reference(queries, passages, positive, allowed, t)
            row[place] = value - step
            below = reference(queries, passages, positive, allowed, t)
            row[place] = value
            found[-1].append((above - below) / (2 * step))
    return found


def case(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four queries and six passages with a random mask; two queries share a positive, one has nothing beside it."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(4, 5, dtype=torch.float64, generator=generator).to(dtype)
    passages = torch.randn(6, 5, dtype=torch.float64, generator=generator).to(dtype)
    positive = torch.tensor([0, 1, 1, 3])
    allowed = torch.rand(4, 6, generator=generator) < 0.6
    allowed[3] = False
    allowed[torch.arange(4), positive] = True
    return queries, passages, positive, allowed


def expected(seed: int) -> tuple[float, Tensor]:
    queries, passages, positive, allowed = case(seed)
    parts = (queries.tolist(), passages.tolist(), positive.tolist(), allowed.tolist())
    return reference(*parts, TEMPERATURE), torch.tensor(slopes(*parts, TEMPERATURE), dtype=torch.float64)


def gap(loss: Loss, seed: int) -> tuple[float, float]:
    """How far ``loss`` and its gradients lie from the reference."""
    queries, passages, positive, allowed = case(seed)
    value = loss(queries.requires_grad_(), passages.requires_grad_(), positive, allowed, TEMPERATURE)
    torch.autograd.backward(value)
    assert queries.grad is not None and passages.grad is not None
    wanted, gradients = expected(seed)
    return abs(value.item() - wanted), (torch.cat([queries.grad, passages.grad]) - gradients).abs().max().item()


@pytest.mark.parametrize("seed", range(3))
def test_values_and_gradients_are_those_of_the_formula(seed: int) -> None:
    value_gap, gradient_gap = gap(info_nce, seed)
    assert value_gap < 1e-9
    assert gradient_gap < 1e-7  # what central differences of step 1e-6 can tell


def without_temperature(q: Tensor, p: Tensor, positive: Tensor, allowed: Tensor, t: float) -> Tensor:
    return info_nce(q, p, positive, allowed, 1.0)


def with_sign_flipped(q: Tensor, p: Tensor, positive: Tensor, allowed: Tensor, t: float) -> Tensor:
    return info_nce(q, p, positive, allowed, -t)


def without_mask(q: Tensor, p: Tensor, positive: Tensor, allowed: Tensor, t: float) -> Tensor:
    return info_nce(q, p, positive, torch.ones_like(allowed), t)


def without_positive_below(q: Tensor, p: Tensor, positive: Tensor, allowed: Tensor, t: float) -> Tensor:
    """The decoupled loss: the positive does not stand in the denominator."""
    scores = q @ p.T / t
    rows = torch.arange(len(q))
    below = allowed.clone()
    below[rows[:-1], positive[:-1]] = False  # the last query has no other candidate
    return (scores.masked_fill(~below, -math.inf).logsumexp(1) - scores[rows, positive]).mean()


def summed(q: Tensor, p: Tensor, positive: Tensor, allowed: Tensor, t: float) -> Tensor:
    return cross_entropy((q @ p.T / t).masked_fill(~allowed, -math.inf), positive, reduction="sum")


def over_passages(q: Tensor, p: Tensor, positive: Tensor, allowed: Tensor, t: float) -> Tensor:
    """Normalised over the queries of a passage instead of the passages of a query."""
    scores = (q @ p.T / t).masked_fill(~allowed, -math.inf)
    return -scores.log_softmax(0)[torch.arange(len(q)), positive].mean()


@pytest.mark.parametrize(
    "mutant",
    [without_temperature, with_sign_flipped, without_mask, without_positive_below, summed, over_passages],
    ids=lambda mutant: mutant.__name__,
)
def test_the_reference_tells_a_mutant_apart(mutant: Loss) -> None:
    assert min(max(gap(mutant, seed)) for seed in range(3)) > 1e-3


@pytest.mark.parametrize("size", [1e4, 1e6])
def test_extreme_scores_stay_finite(size: float) -> None:
    queries, passages, positive, allowed = case(0, torch.float32)
    queries, passages = (queries * size).requires_grad_(), passages.clone().requires_grad_()
    loss = info_nce(queries, passages, positive, allowed, 0.01)
    torch.autograd.backward(loss)
    assert torch.isfinite(loss) and loss > 0
    assert queries.grad is not None and passages.grad is not None
    assert torch.isfinite(queries.grad).all() and torch.isfinite(passages.grad).all()


def test_a_query_that_meets_its_positive_alone_costs_nothing() -> None:
    queries, passages, positive, _ = case(0)
    alone = torch.nn.functional.one_hot(positive, 6).bool()
    assert info_nce(queries, passages, positive, alone, TEMPERATURE).item() == 0


def test_a_passage_that_no_query_may_count_gets_no_gradient() -> None:
    queries, passages, positive, allowed = case(1)
    allowed[:, 5] = False
    passages.requires_grad_()
    torch.autograd.backward(info_nce(queries, passages, positive, allowed, TEMPERATURE))
    assert passages.grad is not None
    assert not passages.grad[5].any()
    assert passages.grad[1].any()


def test_a_better_positive_and_a_worse_negative_both_lower_the_loss() -> None:
    queries = torch.eye(2, dtype=torch.float64)
    allowed, positive = torch.ones(2, 2, dtype=torch.bool), torch.tensor([0, 1])

    def at(own: float, other: float) -> float:
        passages = torch.tensor([[own, other], [other, own]], dtype=torch.float64)
        return info_nce(queries, passages, positive, allowed, TEMPERATURE).item()

    assert at(0.9, 0.2) < at(0.8, 0.2) < at(0.8, 0.3)
