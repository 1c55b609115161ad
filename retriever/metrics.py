"""Ranking measures of retrieved passages, and how well scores separate positive from negative pairs.

Does not know where hits and judgements come from, which model made the scores, or how figures are shown.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.errors import InputError

DEFAULT_NAMES = ("nDCG@10", "RR@10", "R@100")
KNOWN_NAMES = "nDCG@k, RR@k, R@k, P@k, AP@k, AP"
CHUNK_SCORES = 1 << 20

_NAME = re.compile(r"(nDCG|RR|R|P|AP)@([1-9][0-9]*)|AP")

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class _Relevant:
    """The relevant judgements of all queries, flat and ordered by query, then by falling relevance."""

    query: NDArray[np.int64]
    row: NDArray[np.int64]
    relevance: Float64
    counts: NDArray[np.int64]  # per query


Measure = Callable[[Float64, _Relevant], Float64]


def per_query(
    hits: NDArray[np.int32],
    judgements: Sequence[Mapping[int, int]],
    names: Sequence[str] = DEFAULT_NAMES,
) -> dict[str, Float64]:
    """Score every query's hits by the measures ``names``, as trec_eval defines them.

    ``hits`` is int32 [Q, K]: passage rows, best first, -1 pads at the end. ``judgements[q]`` maps a passage
    row to its relevance: above 0 is relevant, and nDCG's gain is the relevance itself. Judged rows count
    whether they were retrieved or not. ``names`` follow ir-measures. Returns float64 [Q] for each name; a
    query without a relevant passage scores 0 in all.

    Raises InputError for an unknown name, a cutoff beyond K, a number of judgements other than Q, a negative
    row, a passage that a query holds twice and a pad before a passage.
    """
    queries, width = hits.shape
    if len(judgements) != queries:
        raise InputError(
            f"judgements: {len(judgements)} for {queries} queries; an unjudged query takes an empty mapping"
        )
    measures = {name: _parse(name, width) for name in names}
    relevant = _flatten(judgements)
    gains = _gains(hits[:, : max((cutoff for _, cutoff in measures.values()), default=0)], relevant)
    return {name: measure(gains[:, :cutoff], relevant) for name, (measure, cutoff) in measures.items()}


def mean(values: Mapping[str, Float64]) -> dict[str, float]:
    """Average what ``per_query`` returned over all queries; raises InputError if there is no query."""
    for name, scores in values.items():
        if not scores.size:
            raise InputError(f"{name}: no query to average over; the split holds no judged query")
    return {name: float(scores.mean()) for name, scores in values.items()}


class PooledAuc:
    """Exact ROC-AUC over all query-passage pairs pooled, a tie counting one half (Mann-Whitney U / PN).

    Memory grows with the positive pairs alone: their scores come first, negatives then arrive in chunks of
    any shape and order, each pair once. Scores are compared in float32.
    """

    def __init__(self, positive_scores: NDArray[np.float32]) -> None:
        """Take the scores of all positive pairs; raises InputError if one is not finite."""
        self._positives = np.sort(_finite(positive_scores))
        self._negatives = 0
        self._half_wins = 0  # an integer, so the value does not depend on the order of the chunks
        self._negative_mean = 0.0
        self._negative_squares = 0.0  # sum of squared deviations from the mean

    def add_negatives(self, scores: NDArray[np.float32]) -> None:
        """Count further negative pairs by their scores; raises InputError if one is not finite."""
        flat = _finite(scores)
        for start in range(0, flat.size, CHUNK_SCORES):
            chunk = flat[start : start + CHUNK_SCORES]
            rivals = np.sort(chunk[chunk >= self._positives.min(initial=np.inf)])  # the others lose to every positive
            # To look up each positive among the many is several times faster than each of the many among positives.
            below = np.searchsorted(rivals, self._positives, side="left").sum(dtype=np.int64)
            not_above = np.searchsorted(rivals, self._positives, side="right").sum(dtype=np.int64)
            self._half_wins += 2 * self._positives.size * (chunk.size - rivals.size) + int(below) + int(not_above)
            self._add_moments(chunk.astype(np.float64))

    def _add_moments(self, chunk: Float64) -> None:
        """Merge mean and squared deviations (Chan, Golub and LeVeque, 1979): large scores do not cancel."""
        total = self._negatives + chunk.size
        mean, squares = _moments(chunk)
        gap = mean - self._negative_mean
        self._negative_squares += squares + gap**2 * self._negatives * chunk.size / total
        self._negative_mean += gap * chunk.size / total
        self._negatives = total

    def value(self) -> float:
        """Return the chance that a positive pair outscores a negative one; nan if either kind is missing."""
        pairs = self._positives.size * self._negatives
        return self._half_wins / (2 * pairs) if pairs else math.nan

    def separation(self) -> float:
        """Return (mean positive - mean negative score) / pooled standard deviation: Cohen's d.

        nan if a kind is missing or the scores of neither kind vary.
        """
        positives, negatives = self._positives.size, self._negatives
        if not positives or not negatives:
            return math.nan
        mean, squares = _moments(self._positives.astype(np.float64))
        squares += self._negative_squares
        if not squares:
            return math.nan
        return (mean - self._negative_mean) / math.sqrt(squares / (positives + negatives - 2))


def _moments(scores: Float64) -> tuple[float, float]:
    mean = scores.mean()
    return float(mean), float(np.square(scores - mean).sum())


def _finite(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = np.asarray(scores, dtype=np.float32).ravel()
    wrong = flat.size - int(np.isfinite(flat).sum())
    if wrong:
        raise InputError(f"scores: {wrong} of {flat.size} are not finite; the model that made them has diverged")
    return flat


def _parse(name: str, width: int) -> tuple[Measure, int]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"{name!r} is no known measure; known are {KNOWN_NAMES} (k is a whole number above 0)")
    cutoff = int(match[2]) if match[2] else width
    if cutoff > width:
        raise InputError(f"{name}: only {width} hits a query were retrieved; search deeper or lower the cutoff")
    return _MEASURES[match[1] or name], cutoff


def _flatten(judgements: Sequence[Mapping[int, int]]) -> _Relevant:
    triples = np.array(
        [(q, row, relevance) for q, judged in enumerate(judgements) for row, relevance in judged.items()],
        dtype=np.int64,
    ).reshape(-1, 3)
    if (triples[:, 1] < 0).any():
        query, row, _ = triples[triples[:, 1] < 0][0]
        raise InputError(f"judgements: query {query} names row {row}; rows count from 0")
    triples = triples[triples[:, 2] > 0]
    query, row, relevance = triples[np.lexsort((-triples[:, 2], triples[:, 0]))].T
    counts = np.bincount(query, minlength=len(judgements))
    return _Relevant(query, row, relevance.astype(np.float64), counts)


def _gains(hits: NDArray[np.int32], relevant: _Relevant) -> Float64:
    """Look up the relevance of every hit, float64 like ``hits``; 0 for pads and what is not relevant."""
    _check_hits(hits)
    stride = 1 << 32  # one key a (query, row) pair: rows of hits are int32
    inside = relevant.row < stride
    keys = relevant.query[inside] * stride + relevant.row[inside]
    order = np.argsort(keys)
    keys = np.append(keys[order], -1)
    relevance = np.append(relevant.relevance[inside][order], 0.0)
    wanted = np.arange(len(hits), dtype=np.int64)[:, None] * stride + hits
    at = np.searchsorted(keys[:-1], wanted)
    return np.where((hits >= 0) & (keys[at] == wanted), relevance[at], 0.0)


def _check_hits(hits: NDArray[np.int32]) -> None:
    ordered = np.sort(hits, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        query, at = np.argwhere(twice)[0]
        raise InputError(f"hits: query {query} holds passage {ordered[query, at]} twice; keep its best hit")
    gaps = (hits[:, :-1] < 0) & (hits[:, 1:] >= 0)
    if gaps.any():
        raise InputError(f"hits: query {np.argwhere(gaps)[0, 0]} has a pad before a passage; move the pads to the end")


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> Float64:
    ratio: Float64 = np.divide(above, below, out=np.zeros(len(above)), where=below > 0)
    return ratio


def _ndcg(gains: Float64, relevant: _Relevant) -> Float64:
    """DCG with log2 discount (Järvelin and Kekäläinen, 2002) over that of the judgements in ideal order."""
    first = np.cumsum(relevant.counts) - relevant.counts
    place = np.arange(len(relevant.query)) - first[relevant.query]
    top = place < gains.shape[1]
    ideal = np.zeros_like(gains)
    ideal[relevant.query[top], place[top]] = relevant.relevance[top]
    # Both sums have one shape and order, so that an ideal ranking scores exactly 1.
    discount = np.log2(np.arange(gains.shape[1]) + 2)
    return _ratio((gains / discount).sum(axis=1), (ideal / discount).sum(axis=1))


def _reciprocal_rank(gains: Float64, relevant: _Relevant) -> Float64:
    found = gains > 0
    return np.where(found.any(axis=1), 1.0 / (found.argmax(axis=1) + 1), 0.0)


def _recall(gains: Float64, relevant: _Relevant) -> Float64:
    return _ratio((gains > 0).sum(axis=1), relevant.counts)


def _precision(gains: Float64, relevant: _Relevant) -> Float64:
    precision: Float64 = np.mean(gains > 0, axis=1)
    return precision


def _average_precision(gains: Float64, relevant: _Relevant) -> Float64:
    found = gains > 0
    precision = found.cumsum(axis=1) / np.arange(1, gains.shape[1] + 1)
    return _ratio((precision * found).sum(axis=1), relevant.counts)


_MEASURES: dict[str, Measure] = {
    "nDCG": _ndcg,
    "RR": _reciprocal_rank,
    "R": _recall,
    "P": _precision,
    "AP": _average_precision,
}
