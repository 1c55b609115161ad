"""AdamW over a model's weights, a step at a time: its rate, the clipping, and its state in a checkpoint.

Does not know what the weights belong to.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from retriever.errors import InputError

MOMENTS = "the optimiser's moments of what is trained now"


def learning_rate(step: int, peak: float, warmup_steps: int, max_steps: int) -> float:
    """Return the rate of optimiser step ``step`` (from 0): linear warm-up, then linear decay to 0 at max_steps."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (max_steps - step) / max(1, max_steps - warmup_steps)


def adamw(
    modules: Iterable[nn.Module], weight_decay: float, scales: Mapping[nn.Parameter, float] | None = None
) -> torch.optim.AdamW:
    """Return the optimiser of all weights that ask for gradients; vectors and numbers do not decay.

    ``scales``: weights whose rate is so many times that of the others, each in a group of its own.
    """
    scales = scales or {}
    found = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    weights = [weight for weight in found if weight not in scales]
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
        *({"params": [weight], "weight_decay": 0.0, "scale": scale} for weight, scale in scales.items()),
    ]
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


@dataclass(frozen=True)
class Schedule:
    """The rate of each of ``steps`` steps, and how far a gradient is clipped; ``table`` of the run names the peak."""

    table: str
    peak: float
    warmup_steps: int
    steps: int
    max_grad_norm: float

    def rate(self, step: int) -> float:
        """Return the rate of step ``step``, from 0."""
        return learning_rate(step, self.peak, self.warmup_steps, self.steps)


class Optimiser:
    """Moves the weights of one model."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        beside: Iterable[nn.Module],
        decay: float,
        schedule: Schedule,
        scales: Mapping[nn.Parameter, float] | None = None,
    ) -> None:
        """``beside``: modules whose weights are moved with those of ``model``, unclipped; ``scales`` as ``adamw``'s."""
        self._accelerator = accelerator
        self.schedule = schedule
        self._adamw = adamw([model, *beside], decay, scales)
        self.model: Any
        self.model, self._wrapped = accelerator.prepare(model, self._adamw)

    def begin(self, step: int) -> None:
        """Set the rate of step ``step``; its gradients are to be added to the weights then."""
        for group in self._adamw.param_groups:
            group["lr"] = self.schedule.rate(step) * group.get("scale", 1.0)

    def end(self, step: int, loss: float) -> None:
        """Move the weights. Raises InputError if ``loss`` is no number."""
        if not math.isfinite(loss):
            table = self.schedule.table
            raise InputError(f"[{table}] the loss is {loss} at step {step}; lower [{table}] learning_rate")
        self._accelerator.clip_grad_norm_(self.model.parameters(), self.schedule.max_grad_norm)
        self._wrapped.step()
        self._wrapped.zero_grad()

    def save(self, path: Path) -> list[dict[str, Any]]:
        """Write the tensors to ``path``, and return the rest as JSON has it."""
        return save_optimizer(self._adamw, path)

    def restore(self, path: Path, groups: list[dict[str, Any]]) -> bool:
        """Take up what ``save`` wrote and returned; False if it moved another number of weights: MOMENTS begin anew."""
        before, now = ([len(group["params"]) for group in of] for of in (groups, self._adamw.param_groups))
        if before != now:
            return False
        restore_optimizer(self._adamw, path, groups)
        return True


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> list[dict[str, Any]]:
    """Write the tensors of ``optimizer`` to ``path``, and return the rest as JSON has it."""
    state = optimizer.state_dict()
    tensors = {
        f"{parameter}.{name}": value.contiguous()
        for parameter, values in state["state"].items()
        for name, value in values.items()
    }
    save_file(tensors, path)
    groups: list[dict[str, Any]] = state["param_groups"]
    return groups


def restore_optimizer(optimizer: torch.optim.Optimizer, path: Path, groups: list[dict[str, Any]]) -> None:
    """Take up what ``save_optimizer`` wrote and returned; what ``optimizer`` was made with stays as it is now."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path).items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = value
    made = [{key: group[key] for key in ("weight_decay", "scale") if key in group} for group in optimizer.param_groups]
    now = [{**group, **settings} for group, settings in zip(groups, made, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": now})
