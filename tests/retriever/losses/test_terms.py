import random

import pytest
import torch

from retriever.losses.terms import NEVER, Candidates, Terms

Masks = list[list[bool]]


def drawn(seed: int) -> tuple[list[int], Masks]:
    """Positives of five queries among seven passages, some shared, and whom each query may meet."""
    chance = random.Random(seed)
    positive = [chance.randrange(4) for _ in range(5)]
    allowed = [[j == own or chance.random() < 0.6 for j in range(7)] for own in positive]
    return positive, allowed


def candidates_of(positive: list[int], allowed: Masks) -> Candidates:
    mask = torch.tensor(allowed)
    return Candidates(torch.tensor(positive), mask, torch.zeros_like(mask))


@pytest.mark.parametrize("seed", range(5))
def test_negatives_are_all_that_is_allowed_but_the_positive(seed: int) -> None:
    positive, allowed = drawn(seed)
    wanted = [[ok and j != own for j, ok in enumerate(row)] for own, row in zip(positive, allowed, strict=True)]
    assert candidates_of(positive, allowed).negatives.tolist() == wanted


@pytest.mark.parametrize("seed", range(5))
def test_turned_asks_each_positive_passage_for_its_query(seed: int) -> None:
    """Place i may meet query k if it is i's own or if k counts passage positive[i] as a negative."""
    positive, allowed = drawn(seed)
    wanted = []
    for i, passage in enumerate(positive):
        wanted.append([i == k or (allowed[k][passage] and positive[k] != passage) for k in range(len(positive))])
    turned = candidates_of(positive, allowed).turned()
    assert turned.allowed.tolist() == wanted
    assert turned.positive.tolist() == list(range(len(positive)))
    assert not turned.hard.any()


def test_queries_of_one_positive_are_not_each_others_negatives_when_turned() -> None:
    everything = [[True] * 3 for _ in range(3)]
    turned = candidates_of([0, 0, 2], everything).turned()
    assert turned.negatives.tolist() == [[False, False, True], [False, False, True], [True, True, False]]


def test_to_turn_leaves_the_candidates_as_they_were() -> None:
    positive, allowed = drawn(1)
    candidates = candidates_of(positive, allowed)
    candidates.turned()
    assert candidates.allowed.tolist() == allowed and candidates.positive.tolist() == positive


def test_terms_count_and_weigh_the_negatives_alone() -> None:
    negatives = torch.tensor([[True, False, True], [False, False, False]])
    log_weights = torch.tensor([[0.5, 2.0, -0.5], [1.0, 1.0, 1.0]], dtype=torch.float64)
    terms = Terms(torch.zeros(2), torch.zeros(2, 3, dtype=torch.float64), negatives, log_weights, 0.1)
    assert terms.counts.tolist() == [2, 0] and terms.counts.dtype == torch.float64
    wanted = torch.tensor([[0.5, NEVER, -0.5], [NEVER, NEVER, NEVER]], dtype=torch.float64).exp()
    torch.testing.assert_close(terms.weights, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_never_leaves_no_trace_in_a_sum_and_has_a_gradient_of_zero(dtype: torch.dtype) -> None:
    logits = torch.tensor([1.0, 2.0, NEVER], dtype=dtype, requires_grad=True)
    total = logits.logsumexp(0)
    torch.autograd.backward(total)
    assert torch.equal(total, logits[:2].logsumexp(0))
    assert logits.grad is not None and logits.grad[2] == 0 and torch.isfinite(logits.grad).all()
