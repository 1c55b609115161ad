"""Distributions over the eligible candidates of a query, and draws from them without replacement.

Does not know where candidates, verdicts and noise come from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retriever.errors import InputError
from retriever.protocols import BoolArray, FloatArray

LogWeights = NDArray[np.float64]


@dataclass(frozen=True)
class Sampler:
    """A distribution: log weights, −inf = never, of scores float32 [q, D] and eligible bool [q, D].

    Where ``random`` is False the k of most weight are taken, without noise.
    """

    log_weights: Callable[[FloatArray, BoolArray], LogWeights]
    random: bool


def score_weights(scores: FloatArray, eligible: BoolArray) -> LogWeights:
    """Weigh each eligible candidate by its score."""
    return np.where(eligible, scores.astype(np.float64), -np.inf)


def equal_weights(scores: FloatArray, eligible: BoolArray) -> LogWeights:
    """Weigh all eligible candidates alike."""
    return np.where(eligible, 0.0, -np.inf)


SAMPLERS = {
    "top": Sampler(score_weights, random=False),
    "uniform": Sampler(equal_weights, random=True),
}


@dataclass(frozen=True)
class SamplerConfig:
    """The sampler of [negatives] and its knobs."""

    name: str = "uniform"

    def __post_init__(self) -> None:
        """Raise InputError naming the samplers there are."""
        if self.name not in SAMPLERS:
            raise InputError(f"[negatives] sampler.name = {self.name!r}: choose one of {', '.join(SAMPLERS)}")


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
