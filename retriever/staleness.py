"""How stale the negatives in use are, measured: what the present weights make of candidates that older ones ranked.

Does not know when this is measured, nor what follows from it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.adoption import Report
from retriever.artifacts import Artifact
from retriever.negatives import MAY_BE_DRAWN, NegativeSet, open_negative_set
from retriever.protocols import BoolArray, FloatArray, IntArray
from retriever.refresh_policy import RefreshConfig, staleness_limit

TOP = 10
"""k of overlap@k."""
EASY = 0.01
"""A negative is easy where σ((s⁻ − s⁺)/τ), its share of the gradient beside its positive, is below this."""


@dataclass(frozen=True)
class Probe:
    """A sample of P queries with the best of their candidates as they stood when the index was made.

    ``queries`` int32 [P] · ``passages`` int32 [P, D], best first, −1 pads · ``scores`` float32 [P, D] ·
    ``negatives`` bool [P, D], which of them may be drawn · ``positives`` int32 [P], the one that scored lowest, −1 for
    none.
    """

    queries: IntArray
    passages: IntArray
    scores: FloatArray
    negatives: BoolArray
    positives: IntArray

    @property
    def rows(self) -> IntArray:
        """Return the distinct corpus rows of the sample, ascending."""
        found: IntArray = np.unique(np.concatenate([self.passages.ravel(), self.positives]))
        return found[found >= 0]


@dataclass(frozen=True)
class Staleness:
    """``overlap``: the share of each query's best TOP candidates that still are its best TOP, averaged.

    Among the candidates alone, so a new search would find less. ``drift``: mean change of their scores. ``easy``: the
    share of the negatives among the best TOP that training learns next to nothing from any more.
    """

    overlap: float
    drift: float
    easy: float


def take_probe(negatives: NegativeSet, queries: int, depth: int, seed: int) -> Probe:
    """Choose ``queries`` of the set's queries by ``seed``, and the best ``depth`` candidates of each."""
    count = min(queries, len(negatives.queries))
    rows = np.sort(np.random.default_rng(seed).choice(len(negatives.queries), count, replace=False)).astype(np.int32)
    return Probe(
        rows,
        np.array(negatives.passages[rows, :depth]),
        np.array(negatives.scores[rows, :depth]),
        np.isin(negatives.verdicts[rows, :depth], MAY_BE_DRAWN),
        _lowest(np.asarray(negatives.positives[rows]), np.asarray(negatives.positive_scores[rows])),
    )


def _lowest(positives: IntArray, scores: FloatArray) -> IntArray:
    lowest = np.where(positives >= 0, scores, np.inf).argmin(axis=1)
    found: IntArray = np.take_along_axis(positives, lowest[:, None], axis=1)[:, 0]
    return found


def most_changed(depth: int) -> float:
    """Return how far 1 − overlap can go among ``depth`` candidates: some of the first must come first again."""
    return min(1.0, max(0, depth - TOP) / TOP)


def measure(probe: Probe, query_vectors: FloatArray, passage_vectors: FloatArray, temperature: float) -> Staleness:
    """Compare ``probe`` with present vectors of its queries [P, dim] and of its ``rows`` [n, dim]."""
    rows = probe.rows
    real, known = probe.passages >= 0, probe.positives >= 0
    places = np.searchsorted(rows, np.where(real, probe.passages, rows[0]))
    now = np.einsum("pd,pkd->pk", query_vectors, passage_vectors[places])
    of_positive = np.einsum(
        "pd,pd->p", query_vectors, passage_vectors[np.searchsorted(rows, np.where(known, probe.positives, rows[0]))]
    )
    top = min(TOP, real.shape[1])
    best_then = real & (np.arange(real.shape[1]) < top)
    order = np.argsort(-np.where(real, now, -np.inf), axis=1, kind="stable")
    best_now = np.zeros_like(real)
    np.put_along_axis(best_now, order[:, :top], True, axis=1)
    negatives = best_then & known[:, None] & probe.negatives
    share = 1 / (1 + np.exp(np.clip((of_positive[:, None] - now) / temperature, -50, 50)))
    return Staleness(
        overlap=_mean((best_then & best_now).sum(axis=1) / np.maximum(best_then.sum(axis=1), 1)),
        drift=_mean((now - probe.scores)[real]),
        easy=_mean(share[negatives] < EASY),
    )


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else 0.0


@dataclass(frozen=True)
class Present:
    """The model as it is: vectors of training queries and of corpus rows (int32 [n] → float32 [n, dim]), and τ."""

    query_vectors: Callable[[IntArray], FloatArray]
    passage_vectors: Callable[[IntArray], FloatArray]
    temperature: Callable[[], float]


class StalenessWatch:
    """Measures as often as [refresh] asks, and tells when the negatives in use have become too stale."""

    def __init__(self, config: RefreshConfig, seed: int, present: Present) -> None:
        """``seed`` chooses the queries."""
        self._config, self._seed, self._present = config, seed, present
        self._probe: Probe | None = None

    def adopt(self, negatives: Artifact) -> None:
        """Watch this set from now on."""
        config = self._config
        if config.probe_every:
            pool = open_negative_set(negatives.path)
            self._probe = take_probe(pool, config.probe_queries, config.probe_depth, self._seed)

    def is_due(self, step: int) -> bool:
        """Tell whether staleness is to be measured at ``step`` of the run."""
        return self._config.probe_every > 0 and step % self._config.probe_every == 0

    def is_stale(self, step: int, report: Report) -> bool:
        """Measure, report, and tell whether that is worse than the trigger allows, once a set."""
        if self._probe is None:
            return False
        present, probe = self._present, self._probe
        queries, passages = present.query_vectors(probe.queries), present.passage_vectors(probe.rows)
        found = measure(probe, queries, passages, present.temperature())
        report("staleness", step=step, **{name: round(value, 4) for name, value in asdict(found).items()})
        limit = staleness_limit(self._config.trigger)
        if limit is None or 1 - found.overlap <= limit:
            return False
        self._probe = None  # until the next set is adopted
        return True
