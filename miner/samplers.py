"""Distributions over the eligible candidates of a query, and draws from them without replacement.

Does not know where candidates, verdicts and noise come from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miner.filters import moments
from miner.knobs import knobs
from retriever.errors import InputError
from retriever.protocols import BoolArray, FloatArray

LogWeights = NDArray[np.float64]
Knobs = Mapping[str, Any]


@dataclass(frozen=True)
class Pool:
    """The candidates of q queries: ``scores`` float32 [q, D], best first, ``eligible`` bool [q, D].

    ``positive`` float [q] is s⁺, the score of the query's lowest positive, as the margins of filters have it; where a
    query has no positive (NaN) it is the score of its best eligible candidate.
    """

    scores: FloatArray
    eligible: BoolArray
    positive: NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Sampler:
    """A distribution: log weights float64 [q, D] of the eligible candidates of a Pool, and its knobs' defaults.

    Where ``random`` is False the k of most weight are taken, without noise.
    """

    log_weights: Callable[[Pool, Knobs], LogWeights]
    defaults: Knobs
    random: bool = True


def _by_score(pool: Pool, knobs: Knobs) -> LogWeights:
    return pool.scores.astype(np.float64)


def _alike(pool: Pool, knobs: Knobs) -> LogWeights:
    return np.zeros(pool.scores.shape)


def _by_log_rank(pool: Pool, knobs: Knobs) -> LogWeights:
    """Weigh rank r, from 0 in the list as mined, by 1/log2(r + 2): the discount of DCG (Järvelin and Kekäläinen)."""
    ranks = np.arange(pool.scores.shape[1])
    return np.broadcast_to(-np.log(np.log2(ranks + 2)), pool.scores.shape)


def _simans(pool: Pool, knobs: Knobs) -> LogWeights:
    """exp(−a·(s − s⁺ + b)²), the sign of the authors' code: b = 1 centres one below s⁺ (Zhou et al., EMNLP 2022)."""
    scores, positive = _comparable(pool, knobs["standardize"])
    weights: LogWeights = -knobs["a"] * np.square(scores - positive + knobs["b"])
    return weights


def _simans_laplace(pool: Pool, knobs: Knobs) -> LogWeights:
    """exp(−τ·|s − s⁺|), the variant in the code of the same authors."""
    scores, positive = _comparable(pool, knobs["standardize"])
    weights: LogWeights = -knobs["tau"] * np.abs(scores - positive)
    return weights


def _by_hardness(pool: Pool, knobs: Knobs) -> LogWeights:
    """exp(β·s): the sampling distribution of Robinson et al., ICLR 2021."""
    weights: LogWeights = knobs["beta"] * _comparable(pool, knobs["standardize"])[0]
    return weights


def _comparable(pool: Pool, standardize: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scores [q, D] and s⁺ [q, 1] in float64, as they are or in standard deviations from the query's mean.

    Mean and deviation are over the eligible candidates; where those score alike, the deviation counts as 1.
    """
    scores = pool.scores.astype(np.float64)
    best = np.max(scores, axis=1, initial=-np.inf, where=pool.eligible)
    positive = np.where(np.isnan(pool.positive), best, pool.positive.astype(np.float64))[:, None]
    positive = np.where(np.isfinite(positive), positive, 0.0)  # nothing eligible: nothing will be drawn
    if not standardize:
        return scores, positive
    mean, deviation = moments(scores, pool.eligible)
    deviation = np.where(deviation > 0, deviation, 1.0)
    return (scores - mean) / deviation, (positive - mean) / deviation


SAMPLERS = {
    "top": Sampler(_by_score, {}, random=False),
    "uniform": Sampler(_alike, {}),
    "log_rank": Sampler(_by_log_rank, {}),
    "simans": Sampler(_simans, {"a": 0.5, "b": 0.0, "standardize": True}),
    "simans_laplace": Sampler(_simans_laplace, {"tau": 3.0, "standardize": True}),
    "hardness": Sampler(_by_hardness, {"beta": 1.0, "standardize": True}),
}


@dataclass(frozen=True)
class SamplerConfig:
    """The sampler of [negatives] and its knobs; a knob that is None has the default of its sampler.

    ``a``, ``b``: of simans; ``tau``: of simans_laplace; ``beta``: of hardness. ``standardize`` (true): these read
    scores in standard deviations from the mean of the query's eligible candidates. On raw cosines, which lie within
    a few hundredths of each other, a = .5 is all but uniform.
    """

    name: str = "uniform"
    a: float | None = None
    b: float | None = None
    tau: float | None = None
    beta: float | None = None
    standardize: bool | None = None

    def __post_init__(self) -> None:
        """Raise InputError naming a sampler that there is not, or a knob that does not fit."""
        for knob in ("a", "tau"):
            if self.knobs.get(knob, 1) <= 0:
                raise InputError(f"[negatives] sampler.{knob} = {getattr(self, knob)}: write a number above 0")

    @property
    def knobs(self) -> Knobs:
        """The sampler's knobs, defaults included."""
        return knobs("[negatives] sampler.", self, {name: sampler.defaults for name, sampler in SAMPLERS.items()})

    @property
    def random(self) -> bool:
        """Whether draws need noise."""
        return SAMPLERS[self.name].random


def log_weights(pool: Pool, config: SamplerConfig) -> LogWeights:
    """Return the log weight float64 [q, D] of each candidate of ``pool``: −inf, never, where it is not eligible."""
    return np.where(pool.eligible, SAMPLERS[config.name].log_weights(pool, config.knobs), -np.inf)


def draw(log_weights: LogWeights, k: int, noise: NDArray[np.float64] | float) -> tuple[NDArray[np.intp], BoolArray]:
    """Draw ``k`` of the D candidates of each query without replacement.

    Gumbel top-k in log space (Kool, van Hoof and Welling, ICML 2019): with standard Gumbel ``noise`` [q, D]
    the result is in the order of drawing one after the other, each in proportion to its weight among those
    left; with noise 0 it is in the order of weight, ties to the lower column. Returns columns [q, k] and a
    mask bool [q, k] that is False where a query has fewer than k candidates; the column there is 0.
    """
    perturbed = log_weights + noise
    columns = np.zeros((len(log_weights), k), np.intp)
    mask = np.zeros((len(log_weights), k), np.bool_)
    best = np.argsort(-perturbed, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(perturbed, best, axis=1) > -np.inf
    columns[:, : best.shape[1]] = np.where(found, best, 0)
    mask[:, : best.shape[1]] = found
    return columns, mask
