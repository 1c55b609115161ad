"""Negative flips: queries that one model answers and the next does not (Yan et al., CVPR 2021).

Does not know which models they are, nor what rate is too much.
"""

import numpy as np

from retriever.protocols import BoolArray, FloatArray


def flipped(now: FloatArray, before: FloatArray) -> BoolArray:
    """Return bool [n]: which queries were right before and are not now, for their figures [n] by one measure.

    A query is right if its figure is above 0: by nDCG@10, RR@10 or R@10 a relevant passage is among the first ten
    hits, by RR@1 it is the first. A query of figure nan in either is none.
    """
    return np.asarray((before > 0) & (now <= 0))
