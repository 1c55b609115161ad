"""Losses over the softmax of a query's candidates: how surely its positive is told from its negatives.

Does not know what negatives weigh, nor how scores are made.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from retriever.losses.terms import NEVER, Terms


def log_sum_of_negatives(terms: Terms) -> Tensor:
    """Return log Σ_j w_j·exp(s_j/τ) over each query's negatives, float [b]; NEVER where it has none."""
    logits = terms.scores / terms.temperature + terms.log_weights
    return logits.masked_fill(~terms.negatives, NEVER).logsumexp(dim=1)


def debiased(log_sum: Tensor, terms: Terms, prior: float) -> Tensor:
    """Take from ``log_sum`` the positives that a share ``prior`` of unlabelled passages is expected to be.

    N·g = max((Σ_j exp(s_j/τ) − N·τ⁺·exp(s⁺/τ)) / (1 − τ⁺), N·exp(−1/τ)) over N negatives (Chuang et al., NeurIPS
    2020), in log space. The floor is the least that cosines can give, so vectors must be normalised.
    """
    number = terms.counts.clamp(min=1).log()
    expected = number + math.log(prior) + terms.positive / terms.temperature
    floor = number - 1 / terms.temperature
    left = expected - log_sum
    # Both branches of `where` have gradients, also the one that is not taken: its argument is kept in the domain.
    rest = log_sum + torch.log1p(-left.clamp(max=-1e-6).exp()) - math.log1p(-prior)
    estimate = torch.maximum(torch.where(left < -1e-6, rest, floor), floor)
    return torch.where(terms.counts > 0, estimate, log_sum)


def info_nce(terms: Terms, log_sum: Tensor) -> Tensor:
    """Return −log p⁺ of each query [b], p⁺ = exp(s⁺/τ) / (exp(s⁺/τ) + Σ) (van den Oord et al. 2018)."""
    return softplus(log_sum - terms.positive / terms.temperature)


def decoupled(terms: Terms, log_sum: Tensor) -> Tensor:
    """Return log Σ − s⁺/τ [b]: no positive in the denominator (Yeh et al., ECCV 2022); 0 without a negative."""
    return torch.where(terms.counts > 0, log_sum - terms.positive / terms.temperature, 0.0)


def generalised_cross_entropy(terms: Terms, log_sum: Tensor, q: float) -> Tensor:
    """Return (1 − p^q)/q of each query [b] (Zhang and Sabuncu, NeurIPS 2018); q → 0 is InfoNCE, 1 is linear in p.

    A wrongly labelled positive, whose p stays small, has less and less to say as q grows.
    """
    return -torch.expm1(q * logsigmoid(terms.positive / terms.temperature - log_sum)) / q


def with_pseudo_positives(terms: Terms, log_sum: Tensor, weight: float) -> Tensor:
    """Return the cross-entropy with targets 1 at the positive and ``weight`` at each negative that scores no less.

    (−log p⁺ − α·Σ log p_j)/(1 + α·number), all p over the same candidates [b] (pseudo-positives of PCME++, Chun,
    ICLR 2024).
    """
    positive = terms.positive / terms.temperature
    log_all = torch.logaddexp(positive, log_sum)
    pseudo = terms.negatives & (terms.scores >= terms.positive[:, None])
    others = log_all[:, None] - terms.scores / terms.temperature
    gained = torch.where(pseudo, others, 0.0).sum(dim=1)
    return (log_all - positive + weight * gained) / (1 + weight * pseudo.sum(dim=1).to(gained.dtype))
