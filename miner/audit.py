"""Which labels look wrong: planted mislabels, margins and losses of pairs, data sets that hurt, one ranking over all.

Does not know how training filled the memory, nor where texts are shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.data import Corpus, QuerySet
from retriever.errors import InputError
from retriever.joining import SEPARATOR, dataset_of
from retriever.pair_memory import PairTable, standardised
from retriever.protocols import BoolArray, IntArray

FUSION = 60
"""k of reciprocal rank fusion (Cormack et al., SIGIR 2009)."""
TRIES = 100

Float64 = NDArray[np.float64]


def plant(queries: QuerySet, corpus: Corpus, share: float, seed: int, *, joined: bool = False) -> QuerySet:
    """Return ``queries`` with ``share`` of them having one positive that is wrong: another query's.

    The threshold samples of Pleiss et al. (NeurIPS 2020). None is a positive of the query, nor a duplicate of one; of
    ``joined`` data sets it is one of the same set, as [mix] makes batches.
    Raises InputError where there are too few different positives to choose from.
    """
    count = round(share * len(queries))
    generator = np.random.default_rng((seed, 20))
    wrong: dict[int, int] = {}
    sets = [dataset_of(name) if joined else "" for name in queries.ids]
    of_set: dict[str, list[int]] = {}
    for row, name in enumerate(sets):
        of_set.setdefault(name, []).append(row)
    for row in generator.permutation(len(queries)).tolist():
        if len(wrong) == count:
            break
        own, others = corpus.text_hash[queries.known(row)], of_set[sets[row]]
        for other in (others[place] for place in generator.integers(len(others), size=TRIES)):
            positive = int(queries.positives(other)[0])
            if corpus.text_hash[positive] not in own:
                wrong[row] = positive
                break
    if len(wrong) < count:
        raise InputError("[audit] planted: nearly all queries have the same positives, so none can be made wrong")
    judgements = [{wrong[row]: 1} if row in wrong else judged for row, judged in enumerate(queries.judgements)]
    return QuerySet(queries.split, queries.ids, queries.texts, judgements)


@dataclass(frozen=True)
class LabelAudit:
    """What training saw of n pairs, float64 [n] each; nan: not seen.

    ``distances``: the means of losses standardised in each batch, standardised over all pairs. ``planted`` bool [n]:
    the wrong positives that the audit itself made. ``threshold`` is the ``percentile`` of their margins, None where
    none was planted: then the ranking alone is known.
    """

    queries: IntArray
    passages: IntArray
    margins: Float64
    losses: Float64
    distances: Float64
    planted: BoolArray
    threshold: float | None
    beta: float

    @property
    def below(self) -> BoolArray:
        """Return bool [n]: the pairs of the data set whose margin is at most the threshold."""
        if self.threshold is None:
            return np.zeros(len(self.margins), np.bool_)
        return (self.margins <= self.threshold) & ~self.planted

    @property
    def bad(self) -> BoolArray:
        """Return bool [n]: the pairs of the data set whose loss, batch by batch, is outside μ ± βσ."""
        return (np.abs(self.distances) > self.beta) & ~self.planted

    def by_margin(self) -> NDArray[np.intp]:
        """Return the places of the data set's pairs that were seen, lowest margin first."""
        return self._ordered(self.margins)

    def by_loss(self) -> NDArray[np.intp]:
        """Return the places of the bad pairs, those farthest from the mean first."""
        order = self._ordered(-np.abs(self.distances))
        return order[self.bad[order]]

    def _ordered(self, values: Float64) -> NDArray[np.intp]:
        order = np.argsort(values, kind="stable")
        return order[(~self.planted & ~np.isnan(values))[order]]


def audit_labels(table: PairTable, queries: QuerySet, percentile: float, beta: float) -> LabelAudit:
    """Judge the pairs of ``table`` by ``queries`` as they were before anything was planted: what is no positive was."""
    known = {(row, int(one)) for row in range(len(queries)) for one in queries.positives(row)}
    pairs = zip(table.queries.tolist(), table.passages.tolist(), strict=True)
    planted = np.array([pair not in known for pair in pairs], np.bool_)
    measured = table.margins[planted & (table.seen > 0)]
    threshold = float(np.percentile(measured, percentile)) if len(measured) else None
    distances = standardised(np.where(planted, np.nan, table.beside))
    return LabelAudit(table.queries, table.passages, table.margins, table.losses, distances, planted, threshold, beta)


def over_runs(audits: Sequence[LabelAudit], rows: Sequence[IntArray], passages: int) -> LabelAudit:
    """Return the means of ``audits`` pair by pair over the runs that saw it; planted pairs are left out.

    ``rows`` int32 [q], one of each audit: its query rows among those of all. ``passages``: rows of the corpus.
    """
    kept = [~audit.planted & ~np.isnan(audit.margins) for audit in audits]
    keys = [
        of[audit.queries[some]].astype(np.int64) * passages + audit.passages[some]
        for audit, of, some in zip(audits, rows, kept, strict=True)
    ]
    every, places = np.unique(np.concatenate(keys), return_inverse=True)
    count = np.bincount(places, minlength=len(every))

    def mean(name: str) -> Float64:
        values = np.concatenate([getattr(audit, name)[some] for audit, some in zip(audits, kept, strict=True)])
        return np.bincount(places, values, len(every)) / count

    thresholds = [audit.threshold for audit in audits if audit.threshold is not None]
    query, passage = np.divmod(every, passages)
    return LabelAudit(
        query.astype(np.int32),
        passage.astype(np.int32),
        mean("margins"),
        mean("losses"),
        standardised(mean("distances")),
        np.zeros(len(every), np.bool_),
        float(np.mean(thresholds)) if thresholds else None,
        audits[0].beta,
    )


@dataclass(frozen=True)
class Finding:
    """What one audit says of a query: ``passages`` are the ids that it is about, ``flagged`` whether it is suspected.

    Without ``flagged`` it is only where this audit would look first.
    """

    audit: str
    query: str
    passages: tuple[str, ...]
    reason: str
    flagged: bool = True


@dataclass(frozen=True)
class Item:
    """A query to look at, with all that audits say of it; ``score`` orders items and means nothing else."""

    query: str
    score: float
    findings: tuple[Finding, ...] = field(default_factory=tuple)


def first_to_look_at(audits: Sequence[Sequence[Finding]], limit: int) -> list[Item]:
    """Return at most ``limit`` queries out of ``audits``, each of which names the most suspicious first.

    By reciprocal rank fusion: an audit adds 1 / (60 + rank) to a query, at the best of its ranks there. So a query of
    which two audits speak comes before one that a single audit puts on top.
    """
    scores: dict[str, float] = {}
    findings: dict[str, list[Finding]] = {}
    for audit in audits:
        ranks: dict[str, int] = {}
        for finding in audit:
            ranks.setdefault(finding.query, len(ranks) + 1)
            findings.setdefault(finding.query, []).append(finding)
        for query, rank in ranks.items():
            scores[query] = scores.get(query, 0.0) + 1 / (FUSION + rank)
    order = sorted(scores, key=lambda query: -scores[query])
    return [Item(query, scores[query], tuple(findings[query])) for query in order[:limit]]


@dataclass(frozen=True)
class DatasetAudit:
    """What audits say of one data set of a join; None where an audit could not say it.

    ``loss`` and ``margin`` are means over its pairs, ``below`` and ``bad`` shares of them, ``false_negatives`` the
    share of its queries with a likely one, ``without`` how much better the rest does without it, with a verdict.
    """

    name: str
    pairs: int
    loss: float | None
    margin: float | None
    below: float | None
    bad: float | None
    false_negatives: float | None
    without: Mapping[str, Any] | None


def audit_datasets(
    queries: QuerySet,
    labels: LabelAudit | None,
    likely: Sequence[int] | None,
    without: Mapping[str, Mapping[str, Any]],
) -> list[DatasetAudit]:
    """Return what is known of each data set of ``queries``, the one to suspect first.

    ``likely`` are query rows with a likely false negative, ``without`` the leave-one-out figures by data set: "gap" of
    the rest without it to all, and "verdict". Those decide the order where they are, since they alone show harm; then
    the mean rank by loss, shares below and bad, and false negatives. Empty unless all ids name two data sets or more.
    """
    if not all(SEPARATOR in name for name in queries.ids):
        return []
    names = np.array([dataset_of(name) for name in queries.ids])
    found = [
        _dataset(str(name), names, labels, None if likely is None else np.array(likely, np.int64), without)
        for name in np.unique(names)
    ]
    if len(found) < 2:
        return []
    signs = ("loss", "below", "bad", "false_negatives")
    ranks: dict[str, list[float]] = {one.name: [] for one in found}
    for sign in signs:
        values = {one.name: getattr(one, sign) for one in found}
        for name, value in values.items():
            if value is not None:
                ranks[name].append(sum(other > value for other in values.values() if other is not None))
    suspicion = {name: float(np.mean(of)) if of else 0.0 for name, of in ranks.items()}
    return sorted(found, key=lambda one: (-(one.without or {"gap": 0.0})["gap"], suspicion[one.name]))


def _dataset(
    name: str,
    names: NDArray[np.str_],
    labels: LabelAudit | None,
    likely: NDArray[np.int64] | None,
    without: Mapping[str, Mapping[str, Any]],
) -> DatasetAudit:
    rows = np.flatnonzero(names == name)
    share = None if likely is None else float(np.isin(rows, likely).mean())
    if labels is None:
        return DatasetAudit(name, len(rows), None, None, None, None, share, without.get(name))
    own = (names[labels.queries] == name) & ~labels.planted & ~np.isnan(labels.margins)
    any_seen = bool(own.any())
    return DatasetAudit(
        name,
        int(own.sum()),
        float(labels.losses[own].mean()) if any_seen else None,
        float(labels.margins[own].mean()) if any_seen else None,
        float(labels.below[own].mean()) if any_seen and labels.threshold is not None else None,
        float(labels.bad[own].mean()) if any_seen else None,
        share,
        without.get(name),
    )
