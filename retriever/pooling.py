"""From token vectors to one vector a text: the pooling functions.

Does not know what made the token vectors; padding is on the right.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Pooling = Callable[[Tensor, Tensor], Tensor]


def pool_cls(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the first token's vector: [n, length, dim] → [n, dim]."""
    return tokens[:, 0]


def pool_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the tokens that ``mask`` [n, length] marks, in at least float32."""
    weights = mask.unsqueeze(-1).to(torch.promote_types(tokens.dtype, torch.float32))
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def pool_last(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the vector of the last token that ``mask`` marks."""
    last = mask.sum(1).clamp(min=1) - 1  # gathered, since a number of texts would be a constant of OpenVINO's graph
    return tokens.gather(1, last[:, None, None].expand(-1, 1, tokens.shape[-1]))[:, 0]


POOLINGS: dict[str, Pooling] = {"cls": pool_cls, "mean": pool_mean, "last": pool_last}
SENTENCE_TRANSFORMERS_MODES = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}
