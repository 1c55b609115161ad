"""Which candidates may be negatives: pure functions over a chunk of ranked lists.

Does not know where the candidates come from, nor how negatives are drawn from those that remain.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.errors import InputError
from retriever.negatives import Verdict
from retriever.protocols import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class FilterConfig:
    """Limits on candidates; the positive score s⁺ that margins are measured from is the query's lowest.

    ``range_min``, ``range_max``: ranks range_min … range_max − 1 stay, from 0 in the list as it was searched.
    ``absolute_margin`` m: a score above s⁺ − m is refused; ``relative_margin`` m: one above s⁺ − m·|s⁺|.
    A margin of 0 or None is off: write a tiny one to refuse just what outscores the positive.
    ``max_score``: a score above it is refused; None is off. ``adaptive`` k: a score above μ + k·σ of the query's
    candidates (ATSS: Zhang et al., CVPR 2020, k = 1); ``iqr`` k: one above Q3 + k·(Q3 − Q1) of them (UNPG: Jung et al.,
    BMVC 2022, k = 1.5). Both are taken over all its candidates but known positives and duplicates; None is off.
    """

    range_min: int = 0
    range_max: int | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = 0.0
    max_score: float | None = None
    adaptive: float | None = None
    iqr: float | None = None

    def __post_init__(self) -> None:
        """Raise InputError naming the key of a limit that nothing could pass or that is not a number."""
        if self.range_min < 0:
            raise InputError(f"[negatives] range_min = {self.range_min}: ranks start at 0")
        if self.range_max is not None and self.range_max <= self.range_min:
            raise InputError(f"[negatives] range_max = {self.range_max}: range_min = {self.range_min} is not below")
        for key in ("absolute_margin", "relative_margin", "max_score", "adaptive", "iqr"):
            value = getattr(self, key)
            if value is not None and not math.isfinite(value):
                raise InputError(f"[negatives] {key} = {value}: write a finite number, or leave the key out")


def judge(
    rows: IntArray,
    scores: FloatArray,
    positives: IntArray,
    positive_scores: FloatArray,
    query_hash: NDArray[np.uint64],
    text_hash: NDArray[np.uint64],
    config: FilterConfig,
) -> NDArray[np.uint8]:
    """Return a Verdict uint8 for each of the candidates ``rows`` int32 [q, D], best first with −1 pads.

    ``scores`` float32 [q, D]; ``positives`` int32 [q, P], −1 pads, with ``positive_scores`` float32 [q, P];
    ``query_hash`` [q] or [q, H] are duplicate hashes of the query's text and of others that are no negatives of it,
    ``text_hash`` [corpus] those of all passages.
    A positive is POSITIVE whatever else it is, then a duplicate of one or of the query is DUPLICATE, and what
    a limit of ``config`` refuses is FILTERED, as are pads.
    """
    duplicate = duplicates(rows, positives, query_hash, text_hash)  # a positive has its own text, too
    refused = too_close(scores, positives, positive_scores, config) | ~in_range(rows.shape[1], config)
    refused |= outlying(scores, (rows >= 0) & ~duplicate, config)
    refused |= rows < 0
    verdicts = np.where(refused, np.uint8(Verdict.FILTERED), np.uint8(Verdict.ELIGIBLE))
    verdicts[duplicate] = Verdict.DUPLICATE
    verdicts[known_positives(rows, positives)] = Verdict.POSITIVE
    return verdicts


LIMITS: Mapping[str, tuple[str, ...]] = {
    "range": ("range_min", "range_max"),
    **{key: (key,) for key in ("absolute_margin", "relative_margin", "max_score", "adaptive", "iqr")},
}
"""The keys of each limit of FilterConfig, by its name."""
REASONS = ("positive", "duplicate", "judged_relevant", *LIMITS)
"""Why a candidate is no negative, the first that holds."""


def refused_by(
    rows: IntArray,
    scores: FloatArray,
    verdicts: NDArray[np.uint8],
    positives: IntArray,
    positive_scores: FloatArray,
    config: FilterConfig,
) -> dict[str, int]:
    """Count the candidates ``rows`` int32 [q, D] that may be no negatives, by the first of REASONS, without pads.

    ``verdicts`` uint8 [q, D] are those of ``judge``, or what stored judgements made of them; the other arguments are as
    they were for it.
    """
    known = Verdict.POSITIVE, Verdict.DUPLICATE
    counted = (rows >= 0) & ~np.isin(verdicts, known)
    left = (rows >= 0) & (verdicts == Verdict.FILTERED)
    found = {verdict.name.lower(): int((verdicts == verdict).sum()) for verdict in (*known, Verdict.JUDGED_RELEVANT)}
    for name, keys in LIMITS.items():
        alone = FilterConfig(**{"relative_margin": None, **{key: getattr(config, key) for key in keys}})
        refused = left & (
            too_close(scores, positives, positive_scores, alone)
            | ~in_range(rows.shape[1], alone)
            | outlying(scores, counted, alone)
        )
        found[name] = int(refused.sum())
        left &= ~refused
    return found


def known_positives(rows: IntArray, positives: IntArray) -> BoolArray:
    """Tell which of ``rows`` [q, D] are among the query's ``positives`` [q, P]; pads are in neither."""
    return _among(rows, rows >= 0, positives, positives >= 0)


def duplicates(
    rows: IntArray, positives: IntArray, query_hash: NDArray[np.uint64], text_hash: NDArray[np.uint64]
) -> BoolArray:
    """Tell which of ``rows`` [q, D] have the text of a positive of the query, or one of ``query_hash`` [q(, H)]."""
    real = rows >= 0
    hashes = text_hash[np.where(real, rows, 0)]
    found = _among(hashes, real, text_hash[np.maximum(positives, 0)], positives >= 0)
    for column in query_hash.reshape(len(rows), -1).T:
        found |= real & (hashes == column[:, None])
    return found


def _among(values: NDArray[Any], real: BoolArray, wanted: NDArray[Any], wanted_real: BoolArray) -> BoolArray:
    """Tell which of ``values`` [q, D] occur in the same line of ``wanted`` [q, P], in memory q × D."""
    found: BoolArray = np.zeros(values.shape, np.bool_)
    for column, column_real in zip(wanted.T, wanted_real.T, strict=True):
        found |= (values == column[:, None]) & column_real[:, None]
    return found & real


def in_range(depth: int, config: FilterConfig) -> BoolArray:
    """Tell which of the ranks 0 … ``depth`` − 1 lie in the configured range, as bool [1, depth]."""
    ranks = np.arange(depth)[None, :]
    within: BoolArray = ranks >= config.range_min
    return within if config.range_max is None else within & (ranks < config.range_max)


def too_close(scores: FloatArray, positives: IntArray, positive_scores: FloatArray, config: FilterConfig) -> BoolArray:
    """Tell which ``scores`` [q, D] exceed a margin below the query's lowest positive score, or ``max_score``.

    The relative margin is a share of the score's size, so that it lowers a negative s⁺ too. Margins refuse
    nothing where a query has no positive.
    """
    score = scores.astype(np.float64)
    refused: BoolArray = np.zeros(scores.shape, np.bool_)
    if config.max_score is not None:
        refused |= score > config.max_score
    lowest = lowest_positive(positives, positive_scores)[:, None]  # NaN is below nothing
    if config.absolute_margin:
        refused |= score > lowest - config.absolute_margin
    if config.relative_margin:
        refused |= score > lowest - config.relative_margin * np.abs(lowest)
    return refused


def lowest_positive(positives: IntArray, positive_scores: FloatArray) -> NDArray[np.float64]:
    """Return s⁺ float64 [q], the lowest score of each query's ``positives`` [q, P], NaN where it has none.

    Margins and samplers measure from the lowest, so that what is kept off one positive is kept off all.
    """
    lowest = np.where(positives >= 0, positive_scores.astype(np.float64), np.inf).min(axis=1, initial=np.inf)
    return np.where(lowest < np.inf, lowest, np.nan)


def outlying(scores: FloatArray, counted: BoolArray, config: FilterConfig) -> BoolArray:
    """Tell which ``scores`` [q, D] are high among those ``counted`` [q, D] of the same query, as ``config`` has it."""
    score = scores.astype(np.float64)
    refused: BoolArray = np.zeros(scores.shape, np.bool_)
    if config.adaptive is not None:
        mean, deviation = moments(score, counted)
        refused |= score > mean + config.adaptive * deviation
    if config.iqr is not None:
        lower, upper = _quantile(score, counted, 0.25), _quantile(score, counted, 0.75)
        refused |= score > upper + config.iqr * (upper - lower)
    return refused & counted


def moments(scores: NDArray[np.float64], counted: BoolArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation, float64 [q, 1] each, over the ``counted`` of [q, D]; 0 over nothing.

    The deviation of equal scores is exactly 0, and their mean is exactly they.
    """
    count = np.maximum(counted.sum(axis=1, keepdims=True), 1)
    first = np.take_along_axis(scores, counted.argmax(axis=1)[:, None], axis=1)
    offsets = np.where(counted, scores - first, 0.0)
    mean = offsets.sum(axis=1, keepdims=True) / count
    variance = np.where(counted, np.square(offsets - mean), 0.0).sum(axis=1, keepdims=True) / count
    return np.where(counted.any(axis=1, keepdims=True), first + mean, 0.0), np.sqrt(variance)


def _quantile(scores: NDArray[np.float64], counted: BoolArray, share: float) -> NDArray[np.float64]:
    """Return the quantile float64 [q, 1] of the ``counted`` of [q, D], between two scores in proportion."""
    ascending = np.sort(np.where(counted, scores, np.inf), axis=1)
    ascending = np.where(np.isfinite(ascending), ascending, 0.0)  # read where nothing is counted alone
    place = share * np.maximum(counted.sum(axis=1, keepdims=True) - 1, 0)
    below = np.floor(place).astype(np.intp)
    low = np.take_along_axis(ascending, below, axis=1)
    high = np.take_along_axis(ascending, np.ceil(place).astype(np.intp), axis=1)
    quantile: NDArray[np.float64] = low + (place - below) * (high - low)
    return quantile
