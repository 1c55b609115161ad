"""Orders of the training queries: which queries make up each batch of an epoch.

Does not know positives, negatives or the model.
"""

import numpy as np

from miner.counter_hash import uniform
from retriever.errors import InputError
from retriever.protocols import IntArray


class RandomPlan:
    """A BatchPlanner that shuffles the queries anew for each epoch, as a function of seed and epoch alone."""

    def __init__(self, queries: int, batch_size: int, seed: int) -> None:
        """Raise InputError if ``queries`` do not fill one batch of ``batch_size``."""
        if not 0 < batch_size <= queries:
            raise InputError(
                f"[train] batch_size = {batch_size}: write a number from 1 to {queries}, the number of training queries"
            )
        self._queries = queries
        self._batch_size = batch_size
        self._seed = seed

    def plan(self, epoch: int) -> IntArray:
        """Return query rows int32 [batches, batch size]: every query once, none twice in a batch.

        Where the last batch is not full, the first queries of the epoch come again in it.
        """
        noise = uniform("random plan", self._seed, epoch, np.arange(self._queries))
        order = np.argsort(noise, kind="stable").astype(np.int32)
        batches = -(-self._queries // self._batch_size)
        return np.resize(order, (batches, self._batch_size))
