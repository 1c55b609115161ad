"""How vectors move from one checkpoint to a later one: a linear map fitted on passages that both have encoded.

Does not know texts, shards or the store.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retriever.protocols import FloatArray

HELD_OUT_EVERY = 5
"""Every fifth passage of a sample is not fitted on: it chooses the strength of the ridge and measures the map."""
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Strengths that are tried, as shares of the mean variance of a dimension."""
UNIT = 1e-3
"""Vectors whose lengths differ from 1 by less were normalised by their encoder."""


@dataclass(frozen=True)
class Drift:
    """x → x + offset + (x − centre) · weight, brought to length 1 if ``unit``; float64 [dim], [dim], [dim, dim].

    ``cosine_before`` and ``cosine_mapped`` are means over the passages that were held out: of their earlier vectors,
    and of the mapped ones, with those that the later checkpoint gives.
    """

    centre: NDArray[np.float64]
    offset: NDArray[np.float64]
    weight: NDArray[np.float64]
    unit: bool
    cosine_before: float
    cosine_mapped: float

    def __call__(self, vectors: FloatArray) -> FloatArray:
        """Return float32 [n, dim]: where ``vectors`` float32 [n, dim] are expected to have moved."""
        # In float64: its rounding, which may depend on the number of threads, is lost on the way to float32.
        exact = vectors.astype(np.float64)
        moved = exact + self.offset + (exact - self.centre) @ self.weight
        if self.unit:
            moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        return moved.astype(np.float32)


def fit_drift(before: FloatArray, after: FloatArray) -> Drift:
    """Fit the map from ``before`` to ``after``, float32 [n, dim] each, of the same passages in random order.

    Ridge regression (Hoerl and Kennard, 1970) of the differences, so that what the sample does not tell stays where it
    was. The strength is the one of RIDGES whose map comes nearest to the held-out passages; where none comes nearer
    than no map at all, the map leaves vectors as they are.
    """
    old, new = before.astype(np.float64), after.astype(np.float64)
    unit = bool(np.all(np.abs(np.linalg.norm(new, axis=1) - 1) < UNIT))
    held = np.arange(len(old)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    if not held.any():
        held[:] = True  # a handful of passages: better measured on themselves than not at all
    fitted = ~held if (~held).any() else held
    stayed = _cosine(old[held], new[held])
    best = _still(old.shape[1], unit, stayed)
    for ridge in RIDGES:
        tried = _ridge(old[fitted], new[fitted], ridge, unit, stayed)
        cosine = _cosine(tried(before[held]).astype(np.float64), new[held])
        if cosine > best.cosine_mapped:
            best = Drift(tried.centre, tried.offset, tried.weight, unit, stayed, cosine)
    return best


def _still(dimensions: int, unit: bool, stayed: float) -> Drift:
    zeros = np.zeros(dimensions)
    return Drift(zeros, zeros, np.zeros((dimensions, dimensions)), unit, stayed, stayed)


def _ridge(old: NDArray[np.float64], new: NDArray[np.float64], ridge: float, unit: bool, stayed: float) -> Drift:
    centre, offset = old.mean(axis=0), (new - old).mean(axis=0)
    centred, moved = old - centre, new - old - offset
    products = centred.T @ centred
    strength = ridge * np.trace(products) / len(products) or 1.0
    weight = np.linalg.solve(products + strength * np.eye(len(products)), centred.T @ moved)
    return Drift(centre, offset, weight, unit, stayed, stayed)


def _cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(np.mean(np.einsum("nd,nd->n", one, other) / lengths))
