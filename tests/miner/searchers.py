"""A searcher and stores that the miner's tests share. They do not know FAISS."""

import numpy as np

from retriever.protocols import FloatArray, IntArray


class BruteForce:
    """A Searcher over vectors float32 [n, dim] pair by pair; the last ``missing`` places come back as pads."""

    def __init__(self, vectors: FloatArray, missing: int = 0) -> None:
        self.vectors = vectors
        self.missing = missing

    @property
    def rows(self) -> int:
        """Number of passages."""
        return len(self.vectors)

    def search(self, queries: FloatArray, depth: int) -> tuple[IntArray, FloatArray]:
        """Return rows int32 [n, depth], best first, −1 pads, and scores float32 [n, depth], −inf at pads."""
        # Not a matrix product: some processors round equal pairs differently by their place in it.
        scores = np.einsum("qd,rd->qr", queries, self.vectors)
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :depth].astype(np.int32)
        found = np.take_along_axis(scores, rows, axis=1)
        if self.missing:
            rows[:, -self.missing :] = -1
            found[:, -self.missing :] = -np.inf
        return rows, found
