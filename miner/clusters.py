"""NGAME's clusters: queries whose embeddings lie together, in groups of exactly one size.

Does not know where the embeddings come from.
"""

import numpy as np
from numpy.typing import NDArray

from miner.counter_hash import counter_hash
from retriever.protocols import FloatArray, IntArray

ROUNDS = 5
"""Rounds of two-means at each split; the halves hardly move after that."""


def balanced_clusters(bank: FloatArray, size: int, seed: int) -> IntArray:
    """Return the rows of ``bank`` float32 [Q, dim] in an order whose runs of ``size`` are clusters; the last is short.

    Balanced bisection by spherical two-means down to ``size``, as in NGAME (Dahiya et al., WSDM 2023).
    A function of its arguments alone; a row of zeros, of a query that was not met yet, may come anywhere.
    """
    order = np.arange(len(bank), dtype=np.int32)
    waiting = [(0, len(bank))]
    while waiting:
        start, end = waiting.pop()
        if end - start <= size:
            continue
        middle = start + size * (-(-(end - start) // size) // 2)
        order[start:end] = _halved(bank, order[start:end], middle - start, seed)
        waiting += [(start, middle), (middle, end)]
    return order


def _halved(bank: FloatArray, rows: IntArray, first: int, seed: int) -> IntArray:
    """Return ``rows`` in an order in which the ``first`` ones lie together, and the others do."""
    vectors = bank[rows]
    one, other = np.argsort(counter_hash("halved", seed, rows), kind="stable")[:2]
    towards = _unit(vectors[one]) - _unit(vectors[other])
    order: NDArray[np.intp] = np.arange(len(rows))
    for _ in range(ROUNDS):
        before, order = order, np.argsort(-(vectors @ towards), kind="stable")
        if np.array_equal(before, order):
            break
        towards = _unit(vectors[order[:first]].mean(axis=0)) - _unit(vectors[order[first:]].mean(axis=0))
    return rows[order]


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.float32(np.linalg.norm(vector))
    return vector / length if length > 0 else vector
