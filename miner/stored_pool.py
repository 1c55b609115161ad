"""Negatives drawn from a published negative set: its verdicts say which, a sampler says how likely.

Does not know how the set was mined, nor what the negatives are used for.
"""

from dataclasses import fields

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
        pool = self._pool
        chosen = NegativeSet(**{array.name: getattr(pool, array.name)[query_rows] for array in fields(NegativeSet)})
        words = (self._seed, self._number, step // self._steps_per_epoch)
        return draw_negatives(chosen, query_rows, self._sampler, self._num_negatives, words)


def draw_negatives(
    pool: NegativeSet, query_rows: IntArray, sampler: SamplerConfig, count: int, words: tuple[int, int, int]
) -> Negatives:
    """Draw ``count`` negatives of each query of ``pool``, whose lines belong to ``query_rows`` int32 [q].

    ``words`` are the seed and what else the noise depends on, beside query and passage.
    """
    eligible = np.isin(pool.verdicts, MAY_BE_DRAWN) & (pool.passages >= 0) & ~pool.dropped[:, None]
    noise: NDArray[np.float64] | float = 0.0
    if sampler.random:
        noise = gumbel("negatives", *words, query_rows[:, None], pool.passages)
    positive = lowest_positive(pool.positives, pool.positive_scores)
    columns, mask = draw(log_weights(Pool(pool.scores, eligible, positive), sampler), count, noise)
    return Negatives(
        rows=np.where(mask, np.take_along_axis(pool.passages, columns, axis=1), np.int32(-1)),
        scores=np.where(mask, np.take_along_axis(pool.scores, columns, axis=1), np.float32(0)),
        mask=mask,
    )
