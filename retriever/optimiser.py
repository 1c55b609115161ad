"""AdamW over a model's weights, and the learning rate of a step.

Does not know what the weights belong to.
"""

from collections.abc import Iterable

import torch
from torch import nn


def learning_rate(step: int, peak: float, warmup_steps: int, max_steps: int) -> float:
    """Return the rate of optimiser step ``step`` (from 0): linear warm-up, then linear decay to 0 at max_steps."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (max_steps - step) / max(1, max_steps - warmup_steps)


def adamw(modules: Iterable[nn.Module], weight_decay: float) -> torch.optim.AdamW:
    """Return the optimiser of all weights that ask for gradients; vectors and numbers do not decay."""
    weights = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, fused=True)
