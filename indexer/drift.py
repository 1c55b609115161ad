"""How vectors move from one checkpoint to a later one: a linear map fitted on passages that both have encoded.

Does not know texts, shards or the store.
"""

from dataclasses import dataclass, replace

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
    and of the mapped ones, with those that the later checkpoint gives. (Fitted to all, the map is a little better.)
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
    was. The strength is the one of RIDGES whose map comes nearest to the held-out passages; with it the map is fitted
    to all of them. Where none comes nearer than no map at all, the map leaves vectors as they are.
    """
    old, new = before.astype(np.float64), after.astype(np.float64)
    unit = bool(np.all(np.abs(np.linalg.norm(new, axis=1) - 1) < UNIT))
    held = np.arange(len(old)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    if not held.any():
        held[:] = True  # a handful of passages: better measured on themselves than not at all
    fitted = ~held if (~held).any() else held
    least, stayed = np.square(old[held] - new[held]).sum(), _cosine(old[held], new[held])
    zeros = np.zeros(old.shape[1])
    best = Drift(zeros, zeros, np.zeros((len(zeros), len(zeros))), False, stayed, stayed)
    for ridge in RIDGES:
        mapped = _ridge(old[fitted], new[fitted], ridge, unit)(before[held]).astype(np.float64)
        error = np.square(mapped - new[held]).sum()
        if error < least:
            least, whole = error, _ridge(old, new, ridge, unit)
            best = replace(whole, cosine_before=stayed, cosine_mapped=_cosine(mapped, new[held]))
    return best


def _ridge(old: NDArray[np.float64], new: NDArray[np.float64], ridge: float, unit: bool) -> Drift:
    centre, offset = old.mean(axis=0), (new - old).mean(axis=0)
    centred, moved = old - centre, new - old - offset
    products = centred.T @ centred
    # As a share of the mean variance; of a single passage there is none.
    strength = ridge * np.trace(products) / len(products) or 1.0
    weight = np.linalg.solve(products + strength * np.eye(len(products)), centred.T @ moved)
    return Drift(centre, offset, weight, unit, np.nan, np.nan)


def _cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(np.mean(np.einsum("nd,nd->n", one, other) / lengths))
