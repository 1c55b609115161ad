"""Losses of a ranker over groups: a query's positive, in column 0, among its negatives.

Does not know how logits are made, nor where negatives and a teacher's scores come from.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from retriever.errors import InputError, require
from retriever.losses.coupled import CLIP
from retriever.losses.terms import NEVER

RankingLossName = Literal["listwise", "gce", "ranknet", "lambdarank", "margin_mse", "asymmetric", "em", "dice", "cet"]


@dataclass(frozen=True)
class RankingLossConfig:
    """[ranker] loss: what is minimised over the raw logits; docs/systems.md has a line for each.

    ``gamma`` and ``shift`` spare a negative of small probability; ``unknown`` is the weight of an unlabelled passage's
    entropy; ``smooth`` is added above and below the fraction of "dice". ``clip`` bounds the weights of "cet", which is
    not of one head: losses/coupled.py has it.
    """

    name: RankingLossName = "listwise"
    temperature: float = 1.0
    gce_q: float = 0.7
    gamma: float = 4.0
    shift: float = 0.05
    unknown: float = 0.2
    smooth: float = 1.0
    clip: float = CLIP

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range and a key that this loss does not read."""
        rules = {
            "temperature must be above 0": self.temperature > 0,
            "gce_q must lie in (0, 1]": 0 < self.gce_q <= 1,
            "gamma must be 0 or at least 1": self.gamma == 0 or self.gamma >= 1,
            "shift must lie in [0, 1)": 0 <= self.shift < 1,
            "unknown must not be negative": self.unknown >= 0,
            "smooth must not be negative": self.smooth >= 0,
            "clip must be at least 1: weights lie in 1/clip … clip": self.clip >= 1,
        }
        require(rules, "[ranker] loss: ")
        for field in dataclasses.fields(self):
            if field.name not in READS[self.name] and getattr(self, field.name) != field.default:
                raise InputError(f'[ranker] loss.{field.name}: name = "{self.name}" does not read it; take it out')


READS: dict[str, set[str]] = {
    "listwise": {"name", "temperature"},
    "gce": {"name", "temperature", "gce_q"},
    "ranknet": {"name"},
    "lambdarank": {"name"},
    "margin_mse": {"name"},
    "asymmetric": {"name", "gamma", "shift"},
    "em": {"name", "unknown"},
    "dice": {"name", "smooth"},
    "cet": {"name", "temperature", "clip"},
}
"""The keys that each loss reads."""


@dataclass(frozen=True)
class Groups:
    """``logits`` float [q, 1 + k] of q queries' groups, the positive first; ``mask`` bool [q, 1 + k], False pads.

    ``teacher`` float [q, 1 + k]: another model's scores of the same pairs, nan where it has none.
    """

    logits: Tensor
    mask: Tensor
    teacher: Tensor | None = None

    @property
    def negatives(self) -> Tensor:
        """Return bool [q, k]: which columns behind the first are a negative."""
        return self.mask[:, 1:]

    @property
    def margins(self) -> Tensor:
        """Return s_j − s⁺ float [q, k]."""
        return self.logits[:, 1:] - self.logits[:, :1]

    def mean(self, values: Tensor, counted: Tensor) -> Tensor:
        """Return the mean [q] of the ``counted`` among ``values`` [q, k]; 0 where there is none."""
        return values.masked_fill(~counted, 0.0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def log_probability(groups: Groups, temperature: float) -> Tensor:
    """Return log p⁺ [q], p⁺ the positive's share of the softmax over its group."""
    log_shares: Tensor = (groups.logits / temperature).masked_fill(~groups.mask, NEVER).log_softmax(dim=1)
    return log_shares[:, 0]


def rank_net(groups: Groups) -> Tensor:
    """Return the mean over negatives of softplus(s_j − s⁺) [q] (Burges et al., ICML 2005)."""
    return groups.mean(softplus(groups.margins), groups.negatives)


def lambda_rank(groups: Groups) -> Tensor:
    """Return Σ_j |1/log₂(1 + r⁺) − 1/log₂(1 + r_j)|·softplus(s_j − s⁺) [q]: LambdaRank for nDCG (Burges 2010).

    r are the present ranks in the group, without gradient. Ties go to the negative.
    """
    with torch.no_grad():
        below = groups.logits[:, 1:].masked_fill(~groups.negatives, NEVER)
        first = (below >= groups.logits[:, :1]).sum(dim=1, keepdim=True) + 1
        order = below.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1
        ranks = order + (order >= first)  # the positive stands between
        gains = (_discount(first, groups.logits) - _discount(ranks, groups.logits)).abs()
    return (gains * softplus(groups.margins)).masked_fill(~groups.negatives, 0.0).sum(dim=1)


def _discount(ranks: Tensor, like: Tensor) -> Tensor:
    return 1 / torch.log2(1 + ranks.to(like.dtype))


def margin_mse(groups: Groups) -> Tensor:
    """Return the mean over negatives of ((s⁺ − s_j) − (t⁺ − t_j))² [q], t the teacher's (Hofstätter et al. 2020).

    Pairs without a teacher's score do not count. Raises ValueError without a teacher.
    """
    if groups.teacher is None:
        raise ValueError("margin_mse needs a teacher's scores")
    wanted = groups.teacher[:, 1:] - groups.teacher[:, :1]
    known = groups.negatives & wanted.isfinite()
    return groups.mean((groups.margins - wanted.masked_fill(~known, 0.0)).square(), known)


def asymmetric(groups: Groups, gamma: float, shift: float) -> Tensor:
    """Return −log σ(s⁺) − Σ_j p_j^γ·log(1 − p_j), p_j = max(σ(s_j) − m, 0) [q] (ASL, Ridnik et al., ICCV 2021).

    A negative of a probability below m costs nothing, and one of a small probability little.
    """
    logits = groups.logits[:, 1:]
    shifted = (torch.sigmoid(logits) - shift).clamp(min=0)
    # log(1 − p) by the other side's sigmoid, so that nothing is lost where p is near 1.
    log_rest = logsigmoid(-logits)
    if shift > 0:
        log_rest = torch.logaddexp(log_rest, torch.full_like(log_rest, math.log(shift))).clamp(max=0)
    costs = -(shifted**gamma) * log_rest
    return costs.masked_fill(~groups.negatives, 0.0).sum(dim=1) - logsigmoid(groups.logits[:, 0])


def entropy_maximising(groups: Groups, weight: float) -> Tensor:
    """Return −log σ(s⁺) − α·Σ_j H(σ(s_j)) [q]: what is not known to be relevant is unknown, not irrelevant.

    H is the entropy of a coin (EM loss, Zhou et al., ECCV 2022): it draws unlabelled passages to a probability of ½.
    """
    logits = groups.logits[:, 1:]
    chance = torch.sigmoid(logits)
    entropy = -chance * logsigmoid(logits) - (1 - chance) * logsigmoid(-logits)
    return -weight * entropy.masked_fill(~groups.negatives, 0.0).sum(dim=1) - logsigmoid(groups.logits[:, 0])


def dice(groups: Groups, smooth: float) -> Tensor:
    """Return 1 − (2·p⁺ + γ)/(Σ_i p_i² + 1 + γ) [q], p = σ(s), the sum over the whole group.

    Of soft sets, one minus their F1 (Milletari et al., 3DV 2016; with γ Li et al., ACL 2020): negatives that are told
    apart already count for less than in a sum of their costs, however many they are.
    """
    chances = torch.sigmoid(groups.logits).masked_fill(~groups.mask, 0.0)
    return 1 - (2 * chances[:, 0] + smooth) / (chances.square().sum(dim=1) + 1 + smooth)


RANKING_LOSSES: dict[RankingLossName, Callable[[Groups, RankingLossConfig], Tensor]] = {
    "listwise": lambda groups, config: -log_probability(groups, config.temperature),
    "gce": lambda groups, config: (
        -torch.expm1(config.gce_q * log_probability(groups, config.temperature)) / config.gce_q
    ),
    "ranknet": lambda groups, config: rank_net(groups),
    "lambdarank": lambda groups, config: lambda_rank(groups),
    "margin_mse": lambda groups, config: margin_mse(groups),
    "asymmetric": lambda groups, config: asymmetric(groups, config.gamma, config.shift),
    "em": lambda groups, config: entropy_maximising(groups, config.unknown),
    "dice": lambda groups, config: dice(groups, config.smooth),
}
"""Each gives the loss of each query, float [q]; a query without a negative costs what its positive alone does."""
