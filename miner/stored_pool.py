"""Negatives drawn from a published negative set: its verdicts say which, a sampler says how likely.

Does not know how the set was mined, nor what the negatives are used for.
"""

import numpy as np
from numpy.typing import NDArray

from miner.counter_hash import gumbel
from miner.filters import lowest_positive
from miner.samplers import Pool, SamplerConfig, draw, log_weights
from retriever.errors import InputError
from retriever.negatives import MAY_BE_DRAWN, NegativeSet
from retriever.protocols import IntArray, Negatives


class StoredPool:
    """A NegativeSource over the negative set ``number``.

    A draw is a function of seed, set, epoch (step // ``steps_per_epoch``), query and passage: neither the
    order of the batch nor its other queries change it.
    """

    def __init__(
        self,
        negatives: NegativeSet,
        number: int,
        sampler: SamplerConfig,
        num_negatives: int,
        seed: int,
        steps_per_epoch: int,
    ) -> None:
        """Raise InputError if the pool is shallower than ``num_negatives``."""
        depth = negatives.passages.shape[1]
        if num_negatives > depth:
            raise InputError(
                f"[train] num_negatives = {num_negatives} is larger than the pool of negative set {number} "
                f"([negatives] depth = {depth}); lower it or mine deeper"
            )
        self._pool = negatives
        self._number = number
        self._sampler = sampler
        self._num_negatives = num_negatives
        self._seed = seed
        self._steps_per_epoch = steps_per_epoch

    def draw(self, query_rows: IntArray, step: int) -> Negatives:
        """Return negatives of ``query_rows`` int32 [batch]; an empty place: row −1, score 0, mask False."""
        rows, scores = self._pool.passages[query_rows], self._pool.scores[query_rows]
        eligible = np.isin(self._pool.verdicts[query_rows], MAY_BE_DRAWN) & (rows >= 0)
        eligible &= ~self._pool.dropped[query_rows, None]
        noise: NDArray[np.float64] | float = 0.0
        if self._sampler.random:
            epoch = step // self._steps_per_epoch
            noise = gumbel("negatives", self._seed, self._number, epoch, query_rows[:, None], rows)
        positive = lowest_positive(self._pool.positives[query_rows], self._pool.positive_scores[query_rows])
        weights = log_weights(Pool(scores, eligible, positive), self._sampler)
        columns, mask = draw(weights, self._num_negatives, noise)
        return Negatives(
            rows=np.where(mask, np.take_along_axis(rows, columns, axis=1), np.int32(-1)),
            scores=np.where(mask, np.take_along_axis(scores, columns, axis=1), np.float32(0)),
            mask=mask,
        )
