"""Negatives drawn from a published negative set: its verdicts say which, a sampler says how likely.

Does not know how the set was mined, nor what the negatives are used for.
"""

import numpy as np
from numpy.typing import NDArray

from miner.counter_hash import gumbel
from miner.filters import lowest_positive
from miner.quotas import Quotas, draw_wanted, total
from miner.samplers import LogWeights, Pool, SamplerConfig, log_weights
from retriever.errors import InputError
from retriever.negatives import NegativeSet
from retriever.protocols import IntArray, Negatives


class StoredPool:
    """A NegativeSource over the negative set ``number``.

    A draw is a function of seed, set, turn (step // ``steps_per_turn``), query and passage: neither the
    order of the batch nor its other queries change it.
    """

    def __init__(
        self,
        negatives: NegativeSet,
        number: int,
        sampler: SamplerConfig,
        num_negatives: int | Quotas,
        seed: int,
        steps_per_turn: int,
    ) -> None:
        """``num_negatives`` of a query, or of each source. Raises InputError if the pool is shallower than that."""
        depth = negatives.passages.shape[1]
        if total(num_negatives) > depth:
            raise InputError(
                f"[train] num_negatives = {total(num_negatives)} is larger than the pool of negative set {number} "
                f"([negatives] depth = {depth}); lower it or mine deeper"
            )
        self._pool = negatives
        self._number = number
        self._sampler = sampler
        self._num_negatives = num_negatives
        self._seed = seed
        self._steps_per_turn = steps_per_turn

    def draw(self, query_rows: IntArray, step: int) -> Negatives:
        """Return negatives of ``query_rows`` int32 [batch]; an empty place: row −1, score 0, mask False."""
        words = (self._seed, self._number, step // self._steps_per_turn)
        return draw_negatives(self._pool.lines(query_rows), query_rows, self._sampler, self._num_negatives, words)


def draw_negatives(
    pool: NegativeSet, query_rows: IntArray, sampler: SamplerConfig, count: int | Quotas, words: tuple[int, int, int]
) -> Negatives:
    """Draw ``count`` negatives, or each source's quota, of each query of ``pool``, whose lines are ``query_rows`` [q].

    ``words`` are the seed and what else the noise depends on, beside query and passage.
    """
    weights, noise = weighed(pool, query_rows, sampler, words)
    columns, mask = draw_wanted(weights, pool.sources, count, noise)
    return pool.picked(columns, mask)


def weighed(
    pool: NegativeSet, query_rows: IntArray, sampler: SamplerConfig, words: tuple[int, int, int]
) -> tuple[LogWeights, NDArray[np.float64] | float]:
    """Return the log weights [q, D] of the candidates of ``pool``, −inf where one may not be drawn, and the noise."""
    eligible = pool.may_be_drawn & ~pool.dropped[:, None]
    noise: NDArray[np.float64] | float = 0.0
    if sampler.random:
        noise = gumbel("negatives", *words, query_rows[:, None], pool.passages)
    positive = lowest_positive(pool.positives, pool.positive_scores)
    return log_weights(Pool(pool.scores, eligible, positive), sampler), noise
