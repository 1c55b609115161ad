"""What an audit found: sentences on each query, suggestions for judges, and everything as JSON values.

Does not know how it was found, nor how a page shows it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from app.audited_runs import AuditedRun
from app.seed_variance import SeedVariance
from miner.audit import DatasetAudit, Finding, Item, LabelAudit
from miner.false_negatives import Election
from retriever.data import Corpus, QuerySet

SHOWN_RIVALS = 3
"""Of so many rivals of a query a finding is made."""


@dataclass(frozen=True)
class Audited:
    """The result. ``queries`` and ``test`` hold the texts of those that ``items`` name; lists are the worst first.

    ``labels`` is None where no run kept a memory of its pairs, ``seeds`` where no comparison of several seeds was read.
    """

    runs: Sequence[AuditedRun]
    corpus: Corpus
    queries: QuerySet
    test: QuerySet | None
    labels: LabelAudit | None
    election: Election
    voters: Sequence[str]
    datasets: Sequence[DatasetAudit]
    seeds: SeedVariance | None
    items: Sequence[Item]


def margin_findings(labels: LabelAudit, queries: QuerySet, corpus: Corpus, limit: int) -> list[Finding]:
    """Return the ``limit`` pairs of lowest margin, the lowest first; flagged are those below a threshold."""
    order = labels.by_margin()
    findings = []
    for rank, place in enumerate(order[:limit].tolist(), 1):
        reason = f"mean margin {labels.margins[place]:+.3f} while training, number {rank} of {len(order)} from below"
        if labels.threshold is not None:
            below = "below" if labels.below[place] else "above"
            reason += f", {below} the threshold {labels.threshold:+.3f} of planted mislabels"
        pair = queries.ids[labels.queries[place]], (corpus.id(labels.passages[place]),)
        findings.append(Finding("AUM", *pair, reason, bool(labels.below[place])))
    return findings


def loss_findings(labels: LabelAudit, queries: QuerySet, corpus: Corpus, limit: int) -> list[Finding]:
    """Return at most ``limit`` bad pairs, those whose loss, batch by batch, is farthest from the mean first."""
    findings = []
    for place in labels.by_loss()[:limit].tolist():
        far = labels.distances[place]
        side = "above" if far > 0 else "below"
        reason = (
            f"mean loss {labels.losses[place]:.2f}; in its batches {abs(far):.1f} standard deviations {side} others"
        )
        pair = queries.ids[labels.queries[place]], (corpus.id(labels.passages[place]),)
        findings.append(Finding("bad pair", *pair, reason))
    return findings


def false_negative_findings(election: Election, queries: QuerySet, corpus: Corpus, limit: int) -> list[Finding]:
    """Return the likely false negatives of the first ``limit`` queries that have one, the best rivals of each."""
    likely = np.flatnonzero(election.likely)
    rivals = np.bincount(election.queries[likely], minlength=len(queries))
    told: dict[int, int] = {}
    findings: list[Finding] = []
    for place in likely.tolist():
        row = int(election.queries[place])
        if row not in told and len(told) == limit:
            continue
        told[row] = told.get(row, 0) + 1
        if told[row] > SHOWN_RIVALS:
            continue
        votes, opinions, gap = election.votes[place], election.opinions[place], election.gaps[place]
        reason = (
            f"{votes} of {opinions} voters put this unlabelled passage above the positive, by {gap:+.3f} on average"
        )
        if rivals[row] > SHOWN_RIVALS and told[row] == 1:
            reason += f"; {rivals[row]} such passages: rather the positive is wrong"
        findings.append(Finding("false negative", queries.ids[row], (corpus.id(election.passages[place]),), reason))
    return findings


def suggestions(audited: Audited) -> Iterator[dict[str, Any]]:
    """Yield the likely false negatives on which all voters agree as lines for a file of verdicts, to be confirmed.

    Of a query with more than SHOWN_RIVALS of them none: there the positive is in doubt, not the rivals.
    """
    election = audited.election
    agreed = np.flatnonzero(election.votes == election.opinions)
    rivals = np.bincount(election.queries[agreed], minlength=len(audited.queries))
    for place in agreed[rivals[election.queries[agreed]] <= SHOWN_RIVALS].tolist():
        yield {
            "query": audited.queries.ids[election.queries[place]],
            "passage": audited.corpus.id(election.passages[place]),
            "relevant": True,
            "source": "hone audit",
            "votes": int(election.votes[place]),
            "gap": round(float(election.gaps[place]), 4),
        }


def as_json(audited: Audited) -> dict[str, Any]:
    """Return the result as JSON values, texts included."""
    labels, seeds = audited.labels, audited.seeds
    asked = [one for one in (audited.test, audited.queries) if one is not None]
    places = {name: (one, row) for one in asked for row, name in enumerate(one.ids)}
    return {
        "runs": [run.name for run in audited.runs],
        "queries": len(audited.queries),
        "labels": None
        if labels is None
        else {
            "pairs": int((~np.isnan(labels.margins)).sum()),
            "threshold": labels.threshold,
            "below": int(labels.below.sum()) if labels.threshold is not None else None,
            "beta": labels.beta,
            "bad": int(labels.bad.sum()),
        },
        "false_negatives": {
            "voters": list(audited.voters),
            "pairs": int(audited.election.likely.sum()),
            "queries": len({*audited.election.queries[audited.election.likely].tolist()}),
        },
        "data_sets": [asdict(one) for one in audited.datasets],
        "seeds": None
        if seeds is None
        else {
            "queries": seeds.queries,
            "systems": [asdict(one) for one in seeds.systems],
            "least_gap": seeds.least_gap,
            "least_gap_single": seeds.least_gap_single,
        },
        "items": [_item(audited, places, item) for item in audited.items],
    }


def _item(audited: Audited, places: Mapping[str, tuple[QuerySet, int]], item: Item) -> dict[str, Any]:
    asked, row = places[item.query]
    positives = asked.positives(row).tolist()
    named = {passage: None for finding in item.findings for passage in finding.passages}
    known = {audited.corpus.id(one) for one in positives}
    rivals = [one for one in named if one not in known]
    return {
        "query": item.query,
        "split": asked.split,
        "text": asked.texts[row],
        "score": round(item.score, 6),
        "positives": [{"id": audited.corpus.id(one), "text": audited.corpus.text(one)} for one in positives],
        "rivals": [{"id": one, "text": audited.corpus.text(audited.corpus.row_of(one) or 0)} for one in rivals],
        "findings": [asdict(finding) for finding in item.findings],
    }
