from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from retriever.optimiser import adamw, learning_rate, restore_optimizer, save_optimizer


@given(st.integers(1, 60), st.data())
def test_the_rate_rises_once_and_falls_to_the_end(max_steps: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, max_steps))
    rates = [learning_rate(step, 2.0, warmup, max_steps) for step in range(max_steps)]
    assert all(0 < rate <= 2 for rate in rates)
    assert rates[:warmup] == pytest.approx([2 * (step + 1) / warmup for step in range(warmup)])
    falling = rates[warmup:]
    assert falling == pytest.approx([2 * (1 - done / max(1, len(falling))) for done in range(len(falling))])


def test_matrices_decay_and_vectors_do_not() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.grad, layer.bias.grad = torch.zeros(2, 3), torch.zeros(2)
    before = {name: weight.detach().clone() for name, weight in layer.named_parameters()}
    optimizer = adamw([layer], weight_decay=0.1)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    optimizer.step()
    assert torch.allclose(layer.weight, before["weight"] * (1 - 0.05))
    assert torch.equal(layer.bias, before["bias"])


def test_what_is_frozen_is_not_optimised() -> None:
    still, moving = nn.Linear(3, 2), nn.Linear(2, 2)
    still.requires_grad_(False)
    groups = adamw([still, moving], 0.0).param_groups
    assert sum(len(group["params"]) for group in groups) == 2


def test_restored_moments_go_with_the_weight_decay_of_now(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    layer.weight.grad, layer.bias.grad = torch.ones(2, 3), torch.ones(2)
    before = adamw([layer], weight_decay=0.1)
    before.step()
    groups = save_optimizer(before, tmp_path / "optimizer.safetensors")
    now = adamw([layer], weight_decay=0.3)
    restore_optimizer(now, tmp_path / "optimizer.safetensors", groups)
    assert [group["weight_decay"] for group in now.param_groups] == [0.3, 0.0]
    assert torch.equal(now.state[layer.weight]["exp_avg"], before.state[layer.weight]["exp_avg"])


def test_a_scaled_weight_moves_faster_and_goes_on_so(tmp_path: Path) -> None:
    layer, number = nn.Linear(3, 2), nn.Parameter(torch.tensor(1.0))
    beside = nn.ParameterList([number])
    optimizer = adamw([layer, beside], 0.0, {number: 100.0})
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1, 1]
    layer.weight.grad, layer.bias.grad, number.grad = torch.ones(2, 3), torch.ones(2), torch.tensor(1.0)
    optimizer.step()
    groups = save_optimizer(optimizer, tmp_path / "optimizer.safetensors")
    again = adamw([layer, beside], 0.0, {number: 10.0})
    restore_optimizer(again, tmp_path / "optimizer.safetensors", groups)
    assert [group.get("scale") for group in again.param_groups] == [None, None, 10.0]
