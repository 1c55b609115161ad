"""What each source gave: how many candidates, what was said of them, how they score, and how many would be drawn.

Does not know how candidates were found, nor who reads the report.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from miner.mining import CHUNK_QUERIES
from miner.quotas import Quotas, drawn_by_source
from miner.samplers import SamplerConfig
from miner.stored_pool import weighed
from retriever.negatives import NegativeSet, Verdict


class _Sums:
    """Counts and sums of one source."""

    def __init__(self) -> None:
        self.verdicts = np.zeros(len(Verdict), np.int64)
        self.may_be_drawn = self.drawn = self.short = 0
        self.score = self.drawn_score = 0.0


def report_sources(
    negatives: NegativeSet, bits: Mapping[str, int], sampler: SamplerConfig, quotas: Quotas | None, seed: int
) -> dict[str, dict[str, Any]]:
    """Return by source how many ``candidates`` it brought, their ``verdicts`` in shares, and mean scores.

    ``score_mean`` is over the candidates that may be drawn. With ``quotas`` there are also the ``quota`` of a query,
    how many negatives were ``drawn`` before any place is filled, as in an epoch of training, their
    ``drawn_score_mean``, and how many queries are ``short``. A candidate of several sources counts for each of them, a
    drawn one for the source that it was drawn for. A mean over nothing is None.
    """
    sums = {name: _Sums() for name in bits}
    names = {bit: name for name, bit in bits.items()}
    for start in range(0, len(negatives.queries), CHUNK_QUERIES):
        chunk = negatives.lines(slice(start, start + CHUNK_QUERIES))
        may = chunk.may_be_drawn
        for name, bit in bits.items():
            brought, one = (chunk.sources & np.uint8(bit)) > 0, sums[name]
            one.verdicts += np.bincount(chunk.verdicts[brought], minlength=len(Verdict))
            one.may_be_drawn += int((brought & may).sum())
            one.score += float(chunk.scores.sum(where=brought & may, dtype=np.float64))
        if quotas is not None:
            weights, noise = weighed(chunk, chunk.queries, sampler, (seed, 0, 0))
            given = drawn_by_source(weights, chunk.sources, quotas, noise)
            for (bit, _), (columns, mask) in zip(quotas.counts, given, strict=True):
                one = sums[names[bit]]
                scores = np.take_along_axis(chunk.scores, columns, axis=1)
                one.drawn += int(mask.sum())
                one.drawn_score += float(scores.sum(where=mask, dtype=np.float64))
                one.short += int((~mask).any(axis=1).sum())
    per_query = {} if quotas is None else {names[bit]: quota for bit, quota in quotas.counts}
    return {name: _told(one, per_query.get(name)) for name, one in sums.items()}


def _told(one: _Sums, quota: int | None) -> dict[str, Any]:
    candidates = int(one.verdicts.sum())
    shares = {
        verdict.name.lower(): int(one.verdicts[verdict]) / candidates for verdict in Verdict if one.verdicts[verdict]
    }
    told: dict[str, Any] = {
        "candidates": candidates,
        "verdicts": shares,
        "score_mean": one.score / one.may_be_drawn if one.may_be_drawn else None,
    }
    if quota is not None:
        told |= {
            "quota": quota,
            "drawn": one.drawn,
            "drawn_score_mean": one.drawn_score / one.drawn if one.drawn else None,
            "short": one.short,
        }
    return told
