import math

import pytest
import torch

from retriever.losses.contrastive import LossConfig, contrastive_loss
from retriever.losses.temperature import LEAST, LearnedTemperature, cosine_temperature
from retriever.losses.terms import Candidates


def test_the_cosine_begins_hot_is_coldest_in_the_middle_and_comes_back() -> None:
    found = [cosine_temperature(0.1, 0.9, 200, step) for step in (0, 50, 100, 150, 200, 300)]
    assert found == pytest.approx([0.9, 0.5, 0.1, 0.5, 0.9, 0.1])


def test_the_cosine_falls_in_the_first_half_and_rises_in_the_second() -> None:
    found = [cosine_temperature(0.05, 0.2, 40, step) for step in range(41)]
    assert found[:21] == sorted(found[:21], reverse=True) and found[20:] == sorted(found[20:])
    assert min(found) == pytest.approx(0.05) and max(found) == pytest.approx(0.2)


@pytest.mark.parametrize("start", [0.02, 0.05, 1.0, 3.0])
def test_a_learned_temperature_begins_where_it_is_told(start: float) -> None:
    assert LearnedTemperature(start)().item() == pytest.approx(start, rel=1e-6)


def after_a_step(own: float, other: float) -> float:
    """τ, begun at 0.2, after a step of descent of InfoNCE over a positive and a negative for each of two queries."""
    temperature = LearnedTemperature(0.2)
    scores = torch.tensor([[own, other], [other, own]])
    candidates = Candidates(torch.arange(2), torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool))
    optimiser = torch.optim.SGD(temperature.parameters(), lr=0.01)
    torch.autograd.backward(contrastive_loss(scores, candidates, LossConfig(), temperature()))
    optimiser.step()
    return float(temperature().detach())


def test_well_told_pairs_cool_it_and_confused_ones_heat_it() -> None:
    """Sharper scores pay where the positive leads, softer ones where the negative does."""
    assert after_a_step(0.6, 0.4) < 0.2 < after_a_step(0.4, 0.6)
    assert after_a_step(0.5, 0.5) == pytest.approx(0.2)


@pytest.mark.parametrize("start", [0.02, 0.2, 2.0])
def test_its_steps_are_relative(start: float) -> None:
    """dτ/dlog τ = τ: a step of the weight multiplies τ."""
    temperature = LearnedTemperature(start)
    torch.autograd.backward(temperature())
    assert temperature.log.grad is not None
    assert temperature.log.grad.item() == pytest.approx(start, rel=1e-6)


def test_a_step_below_the_least_is_taken_back_and_the_next_can_rise_again() -> None:
    temperature = LearnedTemperature(LEAST / 2)
    temperature.bound()
    assert temperature().item() == pytest.approx(LEAST)
    torch.autograd.backward(-temperature())
    assert temperature.log.grad is not None and temperature.log.grad.item() < 0


def test_it_is_kept_in_the_state_as_one_number() -> None:
    state = LearnedTemperature(0.07).state_dict()
    assert [*state] == ["log"] and math.exp(state["log"].item()) == pytest.approx(0.07)
    other = LearnedTemperature(0.5)
    other.load_state_dict(state)
    assert other().item() == pytest.approx(0.07)
