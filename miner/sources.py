"""Where candidates come from: the passages nearest to a query in a generation's index.

Does not know which of them may be negatives.
"""

import numpy as np

from retriever.errors import InputError
from retriever.protocols import FloatArray, IntArray, Searcher

SOURCES = {"ann": 1}
"""Bit of each source in a negative set's ``sources``."""


def ann_candidates(searcher: Searcher, query_vectors: FloatArray, depth: int) -> tuple[IntArray, FloatArray]:
    """Return the nearest rows int32 [q, depth], best first, −1 pads, and their scores float32, 0 at pads.

    This is ANCE's source (Xiong et al., ICLR 2021). Raises InputError if the corpus has fewer passages than
    ``depth``.
    """
    if depth > searcher.rows:
        raise InputError(
            f"[negatives] depth = {depth} is larger than the corpus ({searcher.rows} passages); "
            f"set it to {searcher.rows} or less"
        )
    rows, scores = searcher.search(query_vectors, depth)
    # Indexes mark pads with −inf or the lowest float, which no sum of scores would survive.
    return rows, np.where(rows >= 0, scores, np.float32(0))
