"""What every loss is made of: a positive term, a negative term, what negatives weigh, and the temperature.

Does not know which loss reads it, nor where scores and masks come from.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = -1e30
"""A logit that no sum notices and that, unlike −inf, has a gradient (of zero)."""


@dataclass(frozen=True)
class Candidates:
    """Who is compared in a batch of b queries and n passages.

    ``positive`` int64 [b]: the column of each query's positive · ``allowed`` bool [b, n]: its positive and all that may
    be its negatives · ``hard`` bool [b, n]: the negatives among them that were drawn for this query.
    """

    positive: Tensor
    allowed: Tensor
    hard: Tensor

    @property
    def negatives(self) -> Tensor:
        """Return bool [b, n]: which passages are negatives of a query."""
        return self.allowed.scatter(1, self.positive[:, None], False)

    def turned(self) -> "Candidates":
        """Return the same batch asked the other way round: which query does a positive passage belong to?

        [b, b], the positive of place i against all queries that count it as a negative; those whose own positive it
        is are left out.
        """
        places = torch.arange(len(self.positive), device=self.positive.device)
        allowed = self.negatives[:, self.positive].T.clone()
        allowed[places, places] = True
        return Candidates(places, allowed, torch.zeros_like(allowed))


@dataclass(frozen=True)
class Terms:
    """``positive`` float [b] and ``scores`` float [b, n], similarities not divided by the temperature.

    ``negatives`` bool [b, n] · ``log_weights`` float [b, n] of the negatives, which weigh 1 on average unless some are
    taken out · ``temperature`` a number or a scalar tensor.
    """

    positive: Tensor
    scores: Tensor
    negatives: Tensor
    log_weights: Tensor
    temperature: Tensor | float

    @property
    def counts(self) -> Tensor:
        """Return float [b]: how many negatives each query has."""
        return self.negatives.sum(dim=1).to(self.scores.dtype)

    @property
    def weights(self) -> Tensor:
        """Return float [b, n]: what each passage weighs as a negative, 0 where it is none."""
        return self.log_weights.exp().masked_fill(~self.negatives, 0.0)
