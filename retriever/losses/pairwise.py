"""Losses over pairs or single scores: which positive should outscore which negative, and by how much.

Does not know what negatives weigh, nor how scores are made.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

from retriever.losses.terms import NEVER, Terms

CHUNK_PAIRS = 1 << 22


def mann_whitney(terms: Terms) -> Tensor:
    """Return the mean of softplus((s⁻ − s⁺)/τ) over all positives × all negatives of the batch, across queries.

    A smooth bound from above of ln 2·(1 − AUC) (the Mann–Whitney loss): unlike a softmax it notices a constant that is
    added to one query's scores. Memory is bounded by chunks of pairs; 0 without a negative.
    """
    negatives, weights = terms.scores[terms.negatives], terms.weights[terms.negatives]

    def of_pairs(positive: Tensor) -> Tensor:
        return (softplus((negatives[None, :] - positive[:, None]) / terms.temperature) * weights).sum()

    size = max(1, CHUNK_PAIRS // max(1, len(negatives)))
    chunks = torch.split(terms.positive, size)
    sums = [of_pairs(c) if len(chunks) == 1 else checkpoint(of_pairs, c, use_reentrant=False) for c in chunks]
    return torch.stack(sums).sum() / (weights.sum() * len(terms.positive)).clamp(min=torch.finfo(weights.dtype).tiny)


def lambda_rank(terms: Terms) -> Tensor:
    """Return Σ_j |1/r⁺ − 1/r_j|·softplus((s_j − s⁺)/τ) a query, averaged: LambdaRank for RR, as in ADORE.

    r are the present ranks among positive and negatives, without gradient (Burges 2010; Zhan et al., SIGIR 2021). Ties
    go to the negative.
    """
    with torch.no_grad():
        below = terms.scores.masked_fill(~terms.negatives, NEVER)
        first = (below >= terms.positive[:, None]).sum(dim=1, keepdim=True) + 1
        order = below.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1
        ranks = order + (order >= first)  # the positive stands between
        gains = (terms.weights / first - terms.weights / ranks).abs()
    pairs = softplus((terms.scores - terms.positive[:, None]) / terms.temperature)
    return (gains * pairs.masked_fill(~terms.negatives, 0.0)).sum(dim=1).mean()


def cosine_contrastive(terms: Terms, margin: float, weight: float) -> Tensor:
    """Return (1 − s⁺) + w/|N|·Σ_j max(0, s_j − m) a query, averaged (CCL of SimpleX, Mao et al., CIKM 2021)."""
    above = (terms.scores - margin).clamp(min=0) * terms.weights
    return (1 - terms.positive + weight * above.sum(dim=1) / terms.counts.clamp(min=1)).mean()


def multi_similarity(terms: Terms, alpha: float, beta: float, threshold: float, epsilon: float) -> Tensor:
    """Return log(1 + exp(−α(s⁺ − λ)))/α + log(1 + Σ_j exp(β(s_j − λ)))/β a query, averaged (Wang et al., CVPR 2019).

    Over the pairs that ε-mining leaves: negatives above s⁺ − ε, and the positive if it is below its hardest negative
    + ε.
    """
    scores = terms.scores.masked_fill(~terms.negatives, NEVER)
    mined = terms.negatives & (scores > (terms.positive[:, None] - epsilon))
    near = terms.positive < scores.amax(dim=1) + epsilon
    pulled = softplus(-alpha * (terms.positive - threshold)) / alpha
    pushed = softplus((beta * (scores - threshold)).masked_fill(~mined, NEVER).logsumexp(dim=1)) / beta
    return (torch.where(near, pulled, 0.0) + pushed).mean()
