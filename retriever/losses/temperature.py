"""The temperature of a step: constant, a cosine of the step, or learned beside the weights.

Does not know the loss that is divided by it.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

Schedule = Literal["constant", "cosine", "learned"]
LEAST = 0.01
"""A learned temperature stays above this, as CLIP's does (Radford et al. 2021)."""


def cosine_temperature(low: float, high: float, period: int, step: int) -> float:
    """Return τ of ``step``: from ``high`` to ``low`` and back in ``period`` steps (Kukleva et al., ICLR 2023)."""
    return low + (high - low) * (1 + math.cos(2 * math.pi * step / period)) / 2


class LearnedTemperature(nn.Module):
    """τ as exp of a weight, so that steps are relative and it stays positive."""

    def __init__(self, start: float) -> None:
        """Begin at ``start``."""
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start)))

    def forward(self) -> Tensor:
        """Return τ."""
        return self.log.exp()

    def bound(self) -> None:
        """Bring τ back to LEAST after a step that went below: a clamp in ``forward`` would leave it there for good."""
        with torch.no_grad():
            self.log.clamp_(min=math.log(LEAST))
