"""CET's loss against a scalar loop in float64, mutants that must differ from it, limits, and planted propensities."""

import inspect
import math
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from retriever.losses import coupled as module
from retriever.losses.coupled import coupled

Loss = Callable[..., Tensor]
PLACES = [5, 2, 4, 1, 3]
"""How many of five columns each group fills; one has its positive alone."""


def case(seed: int) -> tuple[Tensor, Tensor]:
    """Return logits float64 [5, 5, 2] of which some weights are clipped and some are not, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2.5 * torch.randn(5, 5, 2, generator=generator, dtype=torch.float64)
    return logits, torch.arange(5)[None] < torch.tensor(PLACES)[:, None]


def by_hand(
    logits: Tensor, mask: Tensor, temperature: float, clip: float
) -> tuple[list[float], list[list[list[float]]]]:
    """Return each group's loss and the gradient by its logits, one number after another, weights held."""
    losses, slopes = [], []
    for group, there in zip(logits.tolist(), mask.tolist(), strict=True):
        real = [place for place, kept in enumerate(there) if kept]
        shares: list[list[float]] = []
        for head in (0, 1):
            total = sum(math.exp(group[place][head] / temperature) for place in real)
            shares.append([math.exp(group[place][head] / temperature) / total for place in real])
        loss, slope = 0.0, [[0.0, 0.0] for _ in group]
        for head, other in ((0, 1), (1, 0)):
            average = math.prod(shares[other]) ** (1 / len(real))
            weight = min(max(average / shares[other][0], 1 / clip), clip)
            loss -= weight * math.log(shares[head][0])
            for number, place in enumerate(real):
                slope[place][head] = weight * (shares[head][number] - (number == 0)) / temperature
        losses.append(loss)
        slopes.append(slope)
    return losses, slopes


def gap(loss: Loss, seed: int, temperature: float, clip: float) -> float:
    """How far values and gradients lie from the loop."""
    logits, mask = case(seed)
    logits.requires_grad_()
    values = loss(logits, mask, temperature, clip)
    torch.autograd.backward(values.sum())
    wanted, slopes = by_hand(logits.detach(), mask, temperature, clip)
    assert logits.grad is not None
    return max(float(np.abs(values.detach().numpy() - wanted).max()), float(np.abs(logits.grad.numpy() - slopes).max()))


@pytest.mark.parametrize(("temperature", "clip"), [(1.0, 10.0), (0.5, 3.0), (2.0, 1.0), (1.0, 1e6)])
def test_values_and_gradients_are_those_of_the_formula(temperature: float, clip: float) -> None:
    assert max(gap(coupled, seed, temperature, clip) for seed in range(3)) < 1e-9


MUTANTS = {
    "own weights": (".flip(1)", ""),
    "ratio turned round": ("(reference - shares[:, 0])", "(shares[:, 0] - reference)"),
    "not clipped": (".clamp(-bound, bound)", ""),
    "clipped above alone": (".clamp(-bound, bound)", ".clamp(max=bound)"),
    "gradient through the weights": ("with torch.no_grad():", "if True:"),
    "pads in the softmax": (".masked_fill(~mask[..., None], NEVER).log_softmax", ".log_softmax"),
    "pads in the mean": ("/ counts", "/ mask.shape[1]"),
    "the first negative for the mean": ("(reference - shares", "(shares[:, 1] - shares"),
    "one head alone": (".sum(dim=1)\n", "[:, 0]\n"),
    "no temperature": ("(logits / temperature)", "logits"),
    "sign flipped": ("return -(", "return ("),
}


@pytest.mark.parametrize("name", [*MUTANTS])
def test_a_mutant_is_told_apart(name: str) -> None:
    old, new = MUTANTS[name]
    source = inspect.getsource(module)
    assert old in source
    head, _, tail = source.rpartition(old)
    mutant = types.ModuleType("mutant")
    exec(compile(head + new + tail, "mutant", "exec"), mutant.__dict__)
    assert gap(mutant.coupled, 1, 0.5, 3.0) > 1e-3


def test_a_positive_alone_costs_nothing_and_extremes_stay_finite() -> None:
    logits = torch.zeros(3, 4, 2)
    logits[1] = 1e4 * torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True, False, False, False], [True] * 4, [True] * 4])
    logits.requires_grad_()
    losses = coupled(logits, mask)
    torch.autograd.backward(losses.sum())
    assert losses[0].item() == 0.0 and torch.isfinite(losses).all()
    assert losses[2].item() == pytest.approx(2 * math.log(4))
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


PROPENSITY = torch.tensor([0.9, 0.5, 0.25, 0.12])
RELEVANCE = torch.tensor([1.2, -0.8, 0.5])
LISTS, PASSAGES = 4000, 8


def planted() -> tuple[Tensor, Tensor]:
    """Return features of relevance [p, 8, 3] and of selection [p, 8, 4] of the group of each labelled passage.

    A passage is labelled if it is relevant, exp(x·w − 1.7), and was judged, which depends on its bucket alone; the
    bucket follows the first feature of relevance, as a pool that was made by a retriever does.
    """
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(LISTS, PASSAGES, 3, generator=generator)
    level = (x[..., 0] + 0.5 * torch.rand(LISTS, PASSAGES, generator=generator)) / 1.5
    bucket = 3 - (4 * level).long().clamp(0, 3)
    chance = torch.exp(x @ RELEVANCE - 1.7) * PROPENSITY[bucket]
    lines, places = (torch.rand(LISTS, PASSAGES, generator=generator) < chance).nonzero(as_tuple=True)
    order = torch.arange(PASSAGES).repeat(len(places), 1)
    order[torch.arange(len(places)), places] = 0
    order[:, 0] = places
    judged = torch.nn.functional.one_hot(bucket, 4).float()
    return x[lines[:, None], order], judged[lines[:, None], order]


def fitted(loss: Loss) -> tuple[Tensor, Tensor]:
    """Fit two linear heads; return the weights of relevance and the log propensities against the first bucket's."""
    x, judged = planted()
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    relevance, selection = torch.zeros(3, requires_grad=True), torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.Adam([relevance, selection], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        torch.autograd.backward(loss(torch.stack([x @ relevance, judged @ selection], dim=2), mask).mean())
        optimizer.step()
    return relevance.detach(), (selection - selection[0]).detach()


def plain(logits: Tensor, mask: Tensor) -> Tensor:
    """Listwise cross-entropy of relevance alone."""
    return -logits[..., 0].log_softmax(dim=1)[:, 0]


def test_planted_propensities_and_relevance_are_recovered() -> None:
    relevance, selection = fitted(coupled)
    assert (selection - (PROPENSITY / PROPENSITY[0]).log()).abs().max() < 0.2
    assert (relevance - RELEVANCE).abs().max() < 0.2
    biased, _ = fitted(plain)
    assert biased[0] - RELEVANCE[0] > 1, "what decided who was judged passes for relevance"
