"""What a negative weighs, by its own score or by a guide's: harder ones more, suspected false ones less or nothing.

Does not know which loss uses the weights. A guide is a frozen model that scores the same batch.
"""

import torch
from torch import Tensor

from retriever.losses.terms import NEVER


def hardness(scores: Tensor, negatives: Tensor, beta: float) -> Tensor:
    """Return log weights [b, n], w_j ∝ exp(β·s_j), a mean of 1 over each query's ``negatives``; no gradient.

    Robinson et al., "Contrastive Learning with Hard Negative Samples", ICLR 2021.
    """
    with torch.no_grad():
        logits = (beta * scores).masked_fill(~negatives, NEVER)
        number = negatives.sum(dim=1, keepdim=True).clamp(min=1).to(scores.dtype)
        return (logits.log_softmax(dim=1) + number.log()).masked_fill(~negatives, 0.0)


def trusted(negatives: Tensor, guide: Tensor, limit: float) -> Tensor:
    """Return the ``negatives`` [b, n] whose ``guide`` score is below ``limit``: others weigh nothing.

    Instance weighting of DCLR (Zhou et al., ACL 2022).
    """
    return negatives & (guide < limit)


def decayed(scores: Tensor, hard: Tensor, guide: Tensor, sigma: float) -> Tensor:
    """Return ``scores`` [b, n] with those of ``hard`` negatives lowered where they come near the ``guide``'s.

    s becomes s + stopgrad(−s·exp(−(s − s₀)²/2σ²)) while s ≤ s₀ (Gaussian decay of GCSE): the value falls, the gradient
    by s stays 1.
    """
    with torch.no_grad():
        lowered = -scores * torch.exp(-((scores - guide) ** 2) / (2 * sigma**2))
        lowered = torch.where(hard & (scores <= guide), lowered, 0.0)
    return scores + lowered


def to_scale(guide: Tensor, scores: Tensor, compared: Tensor) -> Tensor:
    """Return ``guide`` [b, n] shifted and stretched to mean and spread of ``scores`` over the ``compared`` places."""
    with torch.no_grad():
        ours, theirs = scores[compared], guide[compared]
        spread = theirs.std(correction=0).clamp(min=torch.finfo(theirs.dtype).eps)
        return (guide - theirs.mean()) / spread * ours.std(correction=0) + ours.mean()
