"""Negatives that stay with a query until they have become easy, then give way to the next ranks: Conan's trigger.

Does not know how the pool was mined, nor what the negatives are used for.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from retriever.errors import InputError
from retriever.negatives import NegativeSet
from retriever.protocols import FloatArray, IntArray, Negatives

STATE = "per_query.safetensors"


@dataclass(frozen=True)
class PerQueryConfig:
    """[negatives] per_query: when a query's n negatives are replaced, and by which.

    When the mean score of its negatives has fallen by more than ``drop`` of its size since they were assigned, and its
    size is below ``below``. The i-th time by the ranks (i − 1)·n + ``first`` … i·n + ``first`` of its pool.
    """

    drop: float = 0.13
    below: float = 0.8
    first: int = 10

    def __post_init__(self) -> None:
        """Raise InputError naming a number that cannot be."""
        if not (self.drop > 0 and self.below > 0):
            raise InputError(f"[negatives] per_query: drop = {self.drop} and below = {self.below} must be above 0")
        if self.first < 0:
            raise InputError(f"[negatives] per_query.first = {self.first}: ranks start at 0")


class PerQueryPool:
    """A WatchingSource over a negative set (Conan-embedding, Li et al. 2024, with a margin safe for negative scores).

    A query has the best n eligible candidates at first. What it has depends on all scores that were observed, so the
    state belongs to a checkpoint.
    """

    def __init__(self, negatives: NegativeSet, config: PerQueryConfig, num_negatives: int) -> None:
        """Take the whole pool of ``negatives``; every query begins with its best."""
        self._pool = negatives
        self._config = config
        self._count = num_negatives
        queries = len(negatives.queries)
        self._turn = np.zeros(queries, np.int32)
        self._assigned = np.full(queries, np.nan, np.float32)

    def draw(self, query_rows: IntArray, step: int) -> Negatives:
        """Return the present negatives of ``query_rows`` int32 [batch]; an empty place: row −1, score 0, mask False."""
        pool = self._pool.lines(query_rows)
        eligible = pool.may_be_drawn & ~pool.dropped[:, None]
        order = np.argsort(~eligible, axis=1, kind="stable")  # the eligible ones first, best first
        left, turn = eligible.sum(axis=1), self._turn[query_rows]
        start = np.where(turn > 0, (turn - 1) * self._count + self._config.first, 0)
        start = np.clip(np.minimum(start, left - self._count), 0, None)  # a pool that ends keeps its last ones
        places = start[:, None] + np.arange(self._count)
        mask = places < left[:, None]
        columns = np.take_along_axis(order, np.minimum(places, pool.passages.shape[1] - 1), axis=1)
        return pool.picked(columns, mask)

    def observe(self, query_rows: IntArray, scores: FloatArray) -> None:
        """Take the mean score float32 [batch] of each query's negatives by the present weights, nan where it has none.

        The first after an assignment is what later ones are compared with.
        """
        then = self._assigned[query_rows]
        fresh = np.isnan(then)
        decayed = ~fresh & (scores < then - self._config.drop * np.abs(then)) & (np.abs(scores) < self._config.below)
        self._turn[query_rows[decayed]] += 1
        self._assigned[query_rows] = np.where(decayed, np.float32(np.nan), np.where(fresh, scores, then))

    def save(self, folder: Path) -> None:
        """Write what each query has."""
        save_file({"turn": self._turn, "assigned": self._assigned}, folder / STATE)

    def restore(self, folder: Path) -> bool:
        """Take up what ``save`` wrote of the same set; False without it: every query begins with its best."""
        if not (folder / STATE).exists():
            return False
        saved = load_file(folder / STATE)
        self._turn[:], self._assigned[:] = saved["turn"], saved["assigned"]
        return True
