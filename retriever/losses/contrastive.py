"""The loss of a batch put together from its parts: positive term × negative term × weights × temperature.

Does not know where candidates come from, nor which of them are false negatives: the masks say so.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from retriever.errors import InputError, require
from retriever.losses import pairwise, softmax, weighting
from retriever.losses.temperature import LEAST, Schedule
from retriever.losses.terms import Candidates, Terms

LossName = Literal["infonce", "decoupled", "gce", "mw", "lambdarank", "ccl", "multi_similarity"]


@dataclass(frozen=True)
class LossConfig:
    """[loss]: what is minimised; None is off. docs/systems.md has a line for each key.

    ``temperature_rate``: a learned log τ moves at so many times [train] learning_rate.
    ``in_batch``: other queries' positives and negatives count as negatives, too. ``symmetric``: passages look for their
    query as well. ``margin`` is taken from s⁺. ``debias`` is the share of unlabelled passages that are relevant.
    ``hardness`` β weighs negatives by exp(β·s). ``guide`` names a frozen model ("start": the one that training starts
    from); ``guide_max`` drops negatives that score more by it, ``guide_decay`` σ lowers hard ones as they near it.
    ``pseudo_positives`` is the weight of negatives that outscore the positive, as positives.
    """

    name: LossName = "infonce"
    temperature: float = 0.05
    temperature_schedule: Schedule = "constant"
    temperature_max: float = 0.2
    temperature_period: int = 200
    temperature_rate: float = 100.0
    in_batch: bool = True
    symmetric: bool = False
    margin: float = 0.0
    debias: float | None = None
    hardness: float | None = None
    pseudo_positives: float | None = None
    guide: str | None = None
    guide_max: float | None = None
    guide_decay: float | None = None
    gce_q: float = 0.7
    ccl_margin: float = 0.4
    ccl_weight: float = 50.0
    ms_alpha: float = 2.0
    ms_beta: float = 50.0
    ms_threshold: float = 0.5
    ms_epsilon: float = 0.1

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range, a key that this loss does not read, and what cannot be joined."""
        require(_rules(self), "[loss] ")
        for field in dataclasses.fields(self):
            if field.name not in READS[self.name] and getattr(self, field.name) != field.default:
                raise InputError(f'[loss] {field.name}: name = "{self.name}" does not read it; take it out')


_ALL = {"name", "in_batch"}
_TAU = {"temperature", "temperature_schedule", "temperature_max", "temperature_period", "temperature_rate"}
_WEIGHTS = {"hardness", "guide", "guide_max", "guide_decay"}
_SOFTMAX = _ALL | _TAU | _WEIGHTS | {"symmetric", "margin", "debias"}
READS: dict[str, set[str]] = {
    "infonce": _SOFTMAX | {"pseudo_positives"},
    "decoupled": _SOFTMAX,
    "gce": _SOFTMAX | {"gce_q"},
    "mw": _ALL | _TAU | _WEIGHTS,
    "lambdarank": _ALL | _TAU | _WEIGHTS,
    "ccl": _ALL | _WEIGHTS | {"ccl_margin", "ccl_weight"},
    "multi_similarity": _ALL | {"guide", "guide_max", "ms_alpha", "ms_beta", "ms_threshold", "ms_epsilon"},
}
"""The keys that each loss reads. Multi-Similarity has weights of its own, so it takes no others."""


def _rules(config: LossConfig) -> dict[str, bool]:
    cosine = config.temperature_schedule == "cosine"
    guided = config.guide_max is not None or config.guide_decay is not None
    return {
        "temperature must be above 0": config.temperature > 0,
        f"a learned temperature must start above {LEAST}": config.temperature_schedule != "learned"
        or config.temperature > LEAST,
        "margin must be a number from 0 on": config.margin >= 0,
        "temperature_max must be above temperature": not cosine or config.temperature_max > config.temperature,
        "temperature_period must be at least 2": config.temperature_period >= 2,
        "temperature_rate must be above 0": config.temperature_rate > 0,
        'temperature_rate belongs to temperature_schedule = "learned"': config.temperature_schedule == "learned"
        or config.temperature_rate == 100.0,
        'temperature_max and temperature_period belong to temperature_schedule = "cosine"': cosine
        or (config.temperature_max, config.temperature_period) == (0.2, 200),
        "debias must lie in (0, 1)": config.debias is None or 0 < config.debias < 1,
        "hardness must be above 0": config.hardness is None or config.hardness > 0,
        "pseudo_positives must be above 0": config.pseudo_positives is None or config.pseudo_positives > 0,
        "guide_decay must be above 0": config.guide_decay is None or config.guide_decay > 0,
        "gce_q must lie in (0, 1]": 0 < config.gce_q <= 1,
        "ccl_weight, ms_alpha and ms_beta must be above 0": min(config.ccl_weight, config.ms_alpha, config.ms_beta) > 0,
        "guide_max and guide_decay need a guide": config.guide is not None or not guided,
        "guide does nothing without guide_max or guide_decay": config.guide is None or guided,
        "symmetric needs in_batch = true: a passage alone meets no other query": config.in_batch
        or not config.symmetric,
        "pseudo_positives and hardness cannot be joined: a weighted softmax has no p for a negative": (
            config.pseudo_positives is None or config.hardness is None
        ),
        "pseudo_positives and debias both correct for unlabelled positives: choose one": config.pseudo_positives is None
        or config.debias is None,
        'mw compares across queries: in_batch = false has no meaning with name = "mw"': config.name != "mw"
        or config.in_batch,
    }


def contrastive_loss(
    scores: Tensor,
    candidates: Candidates,
    config: LossConfig,
    temperature: Tensor | float | None = None,
    guide: Tensor | None = None,
) -> Tensor:
    """Return the scalar loss of ``scores`` float [b, n], similarities of each query with all passages of the batch.

    ``temperature`` replaces the configured one. ``guide`` float [b, n] holds the guide's similarities where
    ``config.guide`` names one (ValueError without). A query without any negative costs what its positive alone does.
    """
    if (config.guide is None) != (guide is None):
        raise ValueError("guide scores are wanted where [loss] guide names a model, and only there")
    tau = config.temperature if temperature is None else temperature
    loss = LOSSES[config.name](_terms(scores, candidates, config, tau, guide), config)
    if not config.symmetric:
        return loss
    turned = None if guide is None else guide[:, candidates.positive].T
    of_passages = _terms(scores[:, candidates.positive].T, candidates.turned(), config, tau, turned)
    return (loss + LOSSES[config.name](of_passages, config)) / 2


def _terms(
    scores: Tensor, candidates: Candidates, config: LossConfig, temperature: Tensor | float, guide: Tensor | None
) -> Terms:
    positive = scores.gather(1, candidates.positive[:, None])[:, 0] - config.margin
    negatives = candidates.negatives
    if guide is not None:
        if config.guide_decay is not None:
            reference = weighting.to_scale(guide, scores, candidates.allowed)
            scores = weighting.decayed(scores, candidates.hard & negatives, reference, config.guide_decay)
        if config.guide_max is not None:
            negatives = weighting.trusted(negatives, guide, config.guide_max)
    log_weights = torch.zeros_like(scores)
    if config.hardness is not None:
        log_weights = weighting.hardness(scores, negatives, config.hardness)
    return Terms(positive, scores, negatives, log_weights, temperature)


def _log_sum(terms: Terms, config: LossConfig) -> Tensor:
    log_sum = softmax.log_sum_of_negatives(terms)
    return log_sum if config.debias is None else softmax.debiased(log_sum, terms, config.debias)


def _info_nce(terms: Terms, config: LossConfig) -> Tensor:
    log_sum = _log_sum(terms, config)
    if config.pseudo_positives is None:
        return softmax.info_nce(terms, log_sum).mean()
    return softmax.with_pseudo_positives(terms, log_sum, config.pseudo_positives).mean()


LOSSES: dict[str, Callable[[Terms, LossConfig], Tensor]] = {
    "infonce": _info_nce,
    "decoupled": lambda terms, config: softmax.decoupled(terms, _log_sum(terms, config)).mean(),
    "gce": lambda terms, config: softmax.generalised_cross_entropy(terms, _log_sum(terms, config), config.gce_q).mean(),
    "mw": lambda terms, config: pairwise.mann_whitney(terms),
    "lambdarank": lambda terms, config: pairwise.lambda_rank(terms),
    "ccl": lambda terms, config: pairwise.cosine_contrastive(terms, config.ccl_margin, config.ccl_weight),
    "multi_similarity": lambda terms, config: pairwise.multi_similarity(
        terms, config.ms_alpha, config.ms_beta, config.ms_threshold, config.ms_epsilon
    ),
}
