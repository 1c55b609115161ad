"""How several data sets share the batches of an epoch: one data set a batch, in proportions that a run asks for.

Does not know how data sets were joined, nor what is learned from a batch.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from miner.batch_plans import RandomPlan
from miner.counter_hash import uniform
from retriever.errors import InputError
from retriever.protocols import FloatArray, IntArray

COLDEST = 0.05
"""Least temperature: the sizes of real data sets to the power of 20 are numbers yet, and all but the largest vanish."""


@dataclass(frozen=True)
class MixConfig:
    """[mix]: batches of one data set each, of those that a join names.

    ``by`` "sizes", "temperature:T" (in proportion to size^(1/T): T > 1 favours the small ones), or "weights": a share
    for each name in ``weights``.
    """

    by: str = "sizes"
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Raise InputError for what is none of these."""
        if self.by not in ("sizes", "weights") and self.exponent is None:
            raise InputError(
                f'[mix] by = {self.by!r}: write "sizes", "weights" or "temperature:2" (at least {COLDEST})'
            )
        if (self.by == "weights") != (self.weights is not None):
            raise InputError('[mix] by = "weights" and weights = { name = share } belong together')
        if any(not 0 < weight < math.inf for weight in (self.weights or {}).values()):
            raise InputError("[mix] weights must be above 0 and finite; leave a data set out of the join instead")

    @property
    def exponent(self) -> float | None:
        """The power of a data set's size that its share of the batches grows with, None if weights say it."""
        if self.by == "sizes":
            return 1.0
        match = re.fullmatch(r"temperature:(\d*\.?\d+)", self.by)
        return 1 / float(match[1]) if match and float(match[1]) >= COLDEST else None


class MixedPlan:
    """A BatchPlanner whose batches hold queries of one data set each, in the shares that a config asks for.

    Each data set goes through its own queries in an order of its own, on and on: a small one with a large share comes
    round several times an epoch, a large one goes on in the next epoch where it stopped.
    """

    def __init__(self, datasets: Sequence[str], config: MixConfig, batch_size: int, seed: int) -> None:
        """``datasets`` names each query's. Raises InputError for a data set too small for a batch or without weight."""
        self._seed = seed
        names = np.array(datasets)
        self._rows = {name: np.flatnonzero(names == name).astype(np.int32) for name in sorted(set(datasets))}
        total = -(-len(datasets) // batch_size)
        sizes = {name: len(rows) for name, rows in self._rows.items()}
        for name, size in sizes.items():
            if size < batch_size:
                raise InputError(f"[train] batch_size = {batch_size}: data set {name!r} has only {size} queries")
        self._plans = {name: RandomPlan(size, batch_size, seed) for name, size in sizes.items()}
        self._counts = dict(zip(sizes, parts(total, _shares(sizes, config)), strict=True))

    def plan(self, epoch: int, bank: FloatArray | None = None) -> IntArray:
        """Return query rows int32 [batches, batch size]."""
        batches = []
        for name, count in self._counts.items():
            own = {turn: self._plans[name].plan(turn) for turn in self._turns(name, epoch)}
            length = len(self._plans[name].plan(0))
            for position in range(epoch * count, (epoch + 1) * count):
                turn, place = divmod(position, length)
                batches.append(self._rows[name][own[turn][place]])
        noise = uniform("mixed plan", self._seed, epoch, np.arange(len(batches)))
        return np.stack(batches)[np.argsort(noise, kind="stable")]

    def _turns(self, name: str, epoch: int) -> range:
        count, length = self._counts[name], len(self._plans[name].plan(0))
        return range(epoch * count // length, ((epoch + 1) * count - 1) // length + 1)


def _shares(sizes: Mapping[str, int], config: MixConfig) -> list[float]:
    if config.exponent is not None:
        return [size**config.exponent for size in sizes.values()]
    weights = config.weights or {}
    if set(weights) != set(sizes):
        raise InputError(f"[mix] weights name {sorted(weights)}, the data sets are {sorted(sizes)}")
    return [weights[name] for name in sizes]


def parts(total: int, shares: Sequence[float]) -> list[int]:
    """Split ``total`` in proportion to ``shares``, by largest remainders; each part is at least 1.

    Raises InputError if there are more parts than ``total``.
    """
    if total < len(shares):
        raise InputError(f"[mix] {total} batches an epoch cannot hold {len(shares)} data sets; use smaller ones")
    exact = [total * share / sum(shares) for share in shares]
    found = [int(one) for one in exact]
    order = sorted(range(len(shares)), key=lambda place: (found[place] - exact[place], place))
    for place in order[: total - sum(found)]:
        found[place] += 1
    while 0 in found:
        found[found.index(max(found))] -= 1
        found[found.index(0)] = 1
    return found
