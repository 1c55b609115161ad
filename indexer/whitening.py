"""Whitening: the linear map after which a corpus's vectors have mean 0 and covariance 1 (Su et al. 2021).

Does not know models, nor in which format the map is handed on.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.shards import Vectors
from retriever.errors import InputError
from retriever.protocols import FloatArray

Float64 = NDArray[np.float64]
LEAST_VARIANCE = 1e-7
"""Part of the greatest variance below which a direction is float32's rounding, which whitening would blow up."""


@dataclass(frozen=True)
class Whitening:
    """x ↦ W·(x − μ): ``matrix`` W float32 [k, dim], ``bias`` −W·μ float32 [k].

    ``normalize``: the results are brought to length 1.
    """

    matrix: FloatArray
    bias: FloatArray
    normalize: bool

    def __call__(self, vectors: FloatArray) -> FloatArray:
        """Return float32 [n, k] for ``vectors`` float32 [n, dim]."""
        mapped = vectors @ self.matrix.T + self.bias
        if self.normalize:
            mapped /= np.maximum(np.linalg.norm(mapped, axis=1, keepdims=True), 1e-12)
        return np.asarray(mapped, np.float32)

    def shards(self, vectors: Vectors, folder: Path) -> Vectors:
        """Write the mapped ``vectors`` into the new ``folder``, a shard at a time, and return them."""
        folder.mkdir()
        paths = []
        for first, block in vectors.blocks():
            paths.append(folder / f"{first:010d}.npy")
            np.save(paths[-1], self(block))
        return Vectors(paths)


def fit_whitening(vectors: Vectors, dimensions: int | None, *, normalize: bool) -> Whitening:
    """Return PCA whitening fitted on ``vectors``, onto their ``dimensions`` directions of most variance.

    None keeps all in which they vary: what leaves a layer norm may vary in one less than it has. ZCA, its turn back
    into the original axes, gives the same inner products, so it is not offered. Mean and covariance are summed in
    float64, a shard at a time. Raises InputError for more dimensions than the vectors vary in.
    """
    mean, covariance = moments(vectors)
    variances, axes = np.linalg.eigh(covariance)
    variances, axes = variances[::-1], axes[:, ::-1]
    varying = int((variances > LEAST_VARIANCE * max(variances[0], 0)).sum())
    asked = varying if dimensions is None else dimensions
    if not 1 <= asked <= varying:
        raise InputError(f"--dimensions {asked}: the {len(vectors)} vectors vary in {varying} directions")
    kept = axes[:, :asked].T
    kept = kept * np.sign(kept[np.arange(asked), np.abs(kept).argmax(axis=1)])[:, None]  # else the library's choice
    matrix = kept / np.sqrt(variances[:asked])[:, None]
    return Whitening(matrix.astype(np.float32), (-matrix @ mean).astype(np.float32), normalize)


def moments(vectors: Vectors) -> tuple[Float64, Float64]:
    """Return mean float64 [dim] and covariance float64 [dim, dim] (sum divided by n) in two passes over the shards."""
    total = np.zeros(vectors.dimensions)
    for _, block in vectors.blocks():
        total += block.sum(axis=0, dtype=np.float64)
    mean = total / len(vectors)
    products = np.zeros((vectors.dimensions, vectors.dimensions))
    for _, block in vectors.blocks():
        centred = block.astype(np.float64) - mean
        products += centred.T @ centred
    return mean, products / len(vectors)
