"""CET: a ranker's two heads fitted together, what is relevant and what was ever judged, each freeing the other of bias.

Does not know which model the heads sit on, nor who judged.
"""

import math

import torch
from torch import Tensor

from retriever.losses.terms import NEVER

CLIP = 10.0


def coupled(logits: Tensor, mask: Tensor, temperature: float = 1.0, clip: float = CLIP) -> Tensor:
    """Return the loss float [q] of the groups of q queries: both heads' weighted listwise cross-entropies added.

    ``logits`` float [q, 1 + k, 2], the positive first: relevance, selection. ``mask`` bool [q, 1 + k], False pads.
    A label says that a passage is relevant *and* was judged. So the positive's cross-entropy under one head weighs as
    much as the other head makes it less likely than a passage of the group on average: w = g(ref)/g(d⁺), softmax
    ratios without gradient, clipped to 1/``clip`` … ``clip``; log g(ref) is the mean of log g over the group.

    Coupled estimation (Cai et al., CIKM 2022) in the form of the dual learning algorithm (Ai et al., SIGIR 2018), whose
    reference is the first place of the list; a group has no places, and its mean serves every positive alike.
    """
    shares = (logits / temperature).masked_fill(~mask[..., None], NEVER).log_softmax(dim=1)
    with torch.no_grad():
        counts = mask.sum(dim=1, keepdim=True)
        reference = shares.masked_fill(~mask[..., None], 0.0).sum(dim=1) / counts
        bound = math.log(clip)
        weights = (reference - shares[:, 0]).clamp(-bound, bound).exp()  # [q, 2]
    return -(weights.flip(1) * shares[:, 0]).sum(dim=1)
