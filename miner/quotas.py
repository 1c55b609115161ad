"""Draws in which each source gives its own number of negatives: a quota (R²anker, Zhou et al., ACL Findings 2023).

Does not know which source a bit stands for, nor where weights and noise come from.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from miner.samplers import LogWeights, draw
from retriever.protocols import BoolArray


@dataclass(frozen=True)
class Quotas:
    """Of each source's bit how many negatives a query gets, in the order of drawing: ``counts`` of (bit, quota).

    A candidate of several sources counts for the first that draws it. ``fill`` is the bit of the source that gives what
    others are short of; 0 leaves those places empty.
    """

    counts: tuple[tuple[int, int], ...]
    fill: int = 0

    @property
    def total(self) -> int:
        """Negatives of a query where no source is short."""
        return sum(quota for _, quota in self.counts)


def total(wanted: int | Quotas) -> int:
    """Return how many negatives of a query are ``wanted``."""
    return wanted if isinstance(wanted, int) else wanted.total


def draw_wanted(
    log_weights: LogWeights, sources: NDArray[np.uint8], wanted: int | Quotas, noise: NDArray[np.float64] | float
) -> tuple[NDArray[np.intp], BoolArray]:
    """Draw ``wanted`` of the D candidates of each query without replacement, like ``draw``: columns and mask [q, k].

    ``sources`` uint8 [q, D] are the candidates' bits. Under quotas the places of a source lie side by side.
    """
    if isinstance(wanted, int):
        return draw(log_weights, wanted, noise)
    columns, mask, left = _by_quota(log_weights, sources, wanted, noise)
    if wanted.fill:
        spare, found = draw(np.where(sources & wanted.fill, left, -np.inf), wanted.total, noise)
        # The n-th empty place of a query takes the n-th spare candidate.
        turn = np.clip(np.cumsum(~mask, axis=1) - 1, 0, None)
        filled = ~mask & np.take_along_axis(found, turn, axis=1)
        columns = np.where(filled, np.take_along_axis(spare, turn, axis=1), columns)
        mask = mask | filled
    return columns, mask


def _by_quota(
    log_weights: LogWeights, sources: NDArray[np.uint8], quotas: Quotas, noise: NDArray[np.float64] | float
) -> tuple[NDArray[np.intp], BoolArray, LogWeights]:
    """Draw each quota from its own source; also return the weights of what is left."""
    left = log_weights.copy()
    parts = []
    for bit, quota in quotas.counts:
        columns, mask = draw(np.where(sources & bit, left, -np.inf), quota, noise)
        lines, places = np.nonzero(mask)
        left[lines, columns[lines, places]] = -np.inf
        parts.append((columns, mask))
    columns, mask = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    return columns, mask, left


def drawn_by_source(
    log_weights: LogWeights, sources: NDArray[np.uint8], quotas: Quotas, noise: NDArray[np.float64] | float
) -> list[tuple[NDArray[np.intp], BoolArray]]:
    """Return what each source of ``quotas`` gives before any place is filled: columns and mask [q, its quota]."""
    columns, mask, _ = _by_quota(log_weights, sources, quotas, noise)
    ends = np.cumsum([quota for _, quota in quotas.counts])[:-1]
    return list(zip(np.split(columns, ends, axis=1), np.split(mask, ends, axis=1), strict=True))
