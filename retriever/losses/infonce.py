"""InfoNCE: the cross-entropy of finding a query's positive among its candidates.

Does not know where candidates come from, nor which of them are false negatives: the mask says so.
"""

from torch import Tensor
from torch.nn.functional import cross_entropy


def info_nce(queries: Tensor, passages: Tensor, positive: Tensor, allowed: Tensor, temperature: float) -> Tensor:
    """Return the mean over queries of −log softmax(s/τ) at the positive (van den Oord et al. 2018).

    ``queries`` float [b, dim], ``passages`` float [n, dim], ``positive`` int64 [b]: the column of each query's
    positive; ``allowed`` bool [b, n]: which columns stand in the denominator, the positive's among them.
    """
    logits = queries @ passages.T / temperature
    return cross_entropy(logits.masked_fill(~allowed, float("-inf")), positive)
