"""Auditing stores and comparisons: what training remembers, pools, runs and judges are read, and told as one result.

Does not know the command line, nor how the result is shown.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.audit_findings import Audited, false_negative_findings, loss_findings, margin_findings
from app.audited_runs import RESULTS, AuditedRun, Warn, together
from app.comparison.run_curve import CURVE, EVALUATIONS, METRIC, Evaluations
from app.config import data_folder, read_config
from app.seed_variance import Figures, SeedVariance, left_out_gaps, seed_findings, seed_variance
from indexer.lexical import build_lexical
from miner.audit import Finding, LabelAudit, audit_datasets, audit_labels, first_to_look_at, over_runs
from miner.false_negatives import (
    Ballot,
    Election,
    Ground,
    Keys,
    Voter,
    elect,
    one_a_model,
    pool_voter,
    scored_ballot,
    suspects,
    vote,
)
from miner.publish import open_checked_set
from retriever.artifacts import CURRENT
from retriever.data import Corpus, QuerySet
from retriever.errors import InputError
from retriever.ingest import load_query_set
from retriever.joining import SEPARATOR, dataset_of
from retriever.pair_memory import AuditConfig, read_pairs
from retriever.protocols import IntArray, Ranker

RANKED_PAIRS = 1000
"""A ranker is asked about so many of the pairs that the others put first."""


def audit(
    runs: Sequence[AuditedRun],
    corpus: Corpus,
    comparisons: Sequence[Path],
    limit: int,
    warn: Warn,
    *,
    lexical: bool = False,
    ranker: Ranker | None = None,
) -> Audited:
    """Carry out every audit that ``runs`` and ``comparisons`` allow; each brings ``limit`` queries into the ranking."""
    queries, rows = together([run.queries for run in runs])
    labels = _labels(runs, rows, corpus, warn)
    voters = [voter for run, of in zip(runs, rows, strict=True) for voter in _voters(run, of, queries, corpus, warn)]
    election, names = _elect(voters, queries, corpus, lexical=lexical, ranker=ranker)
    seeds, test, without, seed_lists = _seeds(runs, comparisons, corpus, limit, warn)
    likely = sorted({*election.queries[election.likely].tolist()}) if names else None
    lists = [false_negative_findings(election, queries, corpus, limit), *seed_lists]
    if labels is not None:
        lists += [margin_findings(labels, queries, corpus, limit), loss_findings(labels, queries, corpus, limit)]
    return Audited(
        runs,
        corpus,
        queries,
        test,
        labels,
        election,
        names,
        audit_datasets(queries, labels, likely, without),
        seeds,
        first_to_look_at(lists, limit),
    )


def _labels(runs: Sequence[AuditedRun], rows: Sequence[IntArray], corpus: Corpus, warn: Warn) -> LabelAudit | None:
    """Return what the newest checkpoints remember of their pairs, over all runs that keep it."""
    audits, places = [], []
    for run, of in zip(runs, rows, strict=True):
        newest = run.store.checkpoints.intact(CURRENT, warn)
        table = None if newest is None else read_pairs(newest.path / "training")
        if table is None:
            continue
        config = run.config.audit or AuditConfig()
        found = audit_labels(table, run.queries, config.percentile, config.beta)
        planted = int(found.planted.sum())  # more than were asked for: what was a positive then is none now
        if len(np.unique(table.queries)) != len(run.queries) or planted > round(config.planted * len(run.queries)):
            raise InputError(
                f"{run.store.root}: trained on other queries, positives or verdicts than the run file names now; "
                "give those it had"
            )
        audits.append(found)
        places.append(of)
    return over_runs(audits, places, len(corpus)) if audits else None


def _voters(run: AuditedRun, rows: IntArray, queries: QuerySet, corpus: Corpus, warn: Warn) -> list[Voter]:
    """Return the negative sets of a run as voters, the newest first; a line that was carried over votes once."""
    ground = Ground(len(queries), len(corpus), rows)
    counted: dict[int, Any] = {}
    voters = []
    for number in reversed(run.store.negatives.numbers()):
        artifact = run.store.negatives.at(number)
        try:
            pool = open_checked_set(artifact, corpus, run.queries)
        except InputError as error:
            warn(f"{error}; it does not vote")
            continue
        speaks = np.zeros(len(rows), np.bool_)
        for generation in np.unique(pool.mined_from).tolist():
            done = counted.setdefault(generation, np.zeros(len(rows), np.bool_))
            fresh = (pool.mined_from == generation) & ~done
            done |= fresh
            speaks |= fresh
        rescored = "negatives" in artifact.parents
        nearest = 0 if rescored else artifact.facts["sources"].get("ann", 0)
        name = f"generation {artifact.parents['generation']} of {run.name}"
        voters.append(pool_voter(name, pool, speaks, nearest, ground))
    return voters


def _elect(
    voters: Sequence[Voter], queries: QuerySet, corpus: Corpus, *, lexical: bool, ranker: Ranker | None
) -> tuple[Election, list[str]]:
    keys = suspects(voters, len(corpus))
    ballots = one_a_model([vote(voter, keys, len(corpus)) for voter in voters])
    others: list[Ballot] = [_by_words(keys, queries, corpus)] if lexical else []
    if ranker is not None:
        first = elect(keys, ballots, others, len(corpus))
        some = first.queries[:RANKED_PAIRS].astype(np.int64) * len(corpus) + first.passages[:RANKED_PAIRS]
        others.append(_by_ranker(keys, some, queries, corpus, ranker))
    return elect(keys, ballots, others, len(corpus)), [one.name for one in (*ballots, *others)]


def _by_words(keys: Keys, queries: QuerySet, corpus: Corpus) -> Ballot:
    index = build_lexical(text for _, texts in corpus.blocks() for text in texts)
    scores, positive = (np.full(len(keys), np.nan, np.float32) for _ in range(2))
    query, passage = np.divmod(keys, len(corpus))
    for row in np.unique(query).tolist():
        here = slice(*np.searchsorted(query, (row, row + 1)).tolist())
        of_all = index.scores(queries.texts[row])
        scores[here] = of_all[passage[here]]
        positive[here] = of_all[queries.positives(row)].max()
    return scored_ballot("BM25", scores, positive)


def _by_ranker(keys: Keys, some: Keys, queries: QuerySet, corpus: Corpus, ranker: Ranker) -> Ballot:
    asked = np.unique(some)
    query, passage = np.divmod(asked, len(corpus))
    pairs = list(zip(query.tolist(), passage.tolist(), strict=True))
    known = [(row, int(one)) for row in np.unique(query).tolist() for one in queries.positives(row)]
    both = [*pairs, *known]
    found = ranker.score([queries.texts[row] for row, _ in both], corpus.texts([one for _, one in both]))
    best: dict[int, float] = {}
    for (row, _), score in zip(known, found[len(pairs) :].tolist(), strict=True):
        best[row] = max(score, best.get(row, -np.inf))
    scores, positive = (np.full(len(keys), np.nan, np.float32) for _ in range(2))
    places = np.searchsorted(keys, asked)
    scores[places] = found[: len(pairs)]
    positive[places] = [best[row] for row, _ in pairs]
    return scored_ballot("ranker", scores, positive)


def _seeds(
    runs: Sequence[AuditedRun], comparisons: Sequence[Path], corpus: Corpus, limit: int, warn: Warn
) -> tuple[SeedVariance | None, QuerySet | None, dict[str, Any], list[list[Finding]]]:
    """Return the seed variance, the test queries, the leave-one-out figures and the findings of the one comparison."""
    if not comparisons:
        return None, None, {}, []
    folder = comparisons[0]
    results = json.loads((folder / RESULTS).read_bytes())
    first = folder / results["runs"][0]["folder"] / "run.toml"
    data = data_folder(read_config(first), first)
    test = load_query_set(data, results["data"]["test"]["split"], corpus, skip_missing=True, warn=warn)
    figures = per_query_figures(folder, results, len(test))
    report = seed_variance(figures)
    findings = [] if report is None else [seed_findings(report, figures, test.ids)[:limit]]
    return report, test, left_out(runs, results, figures, test), findings


def per_query_figures(folder: Path, results: Any, queries: int) -> Figures:
    """Return nDCG@10 of each test query of each run of a comparison, by the checkpoint that dev chose.

    Raises InputError where the figures are of other queries than ``queries`` many.
    """
    figures: dict[str, dict[int, Any]] = {}
    for run in results["runs"]:
        root = folder / run["folder"]
        keys = {point["step"]: point["key"] for point in json.loads((root / CURVE).read_bytes())["points"]}
        record = Evaluations(root / EVALUATIONS).find(keys[run["best"]["step"]]) or {"per_query": {}}
        values = np.array(record["per_query"].get(METRIC, []), np.float64)
        if len(values) != queries:
            raise InputError(f"{root}: has figures of {len(values)} queries where the test split has {queries}")
        figures.setdefault(run["system"], {})[run["seed"]] = values
    return figures


def left_out(runs: Sequence[AuditedRun], results: Any, figures: Figures, test: QuerySet) -> dict[str, Any]:
    """Return by data set what a system says that is the baseline but for learning from all data sets but that one.

    It is measured on the queries of the others.
    """
    baseline, changes = results["baseline"], results["systems"]
    learned = {
        run.system: {dataset_of(name) for name in run.queries.ids}
        for run in runs
        if all(SEPARATOR in name for name in run.queries.ids)
    }
    if baseline not in learned or baseline not in figures or not all(SEPARATOR in name for name in test.ids):
        return {}
    asked = np.array([dataset_of(name) for name in test.ids])
    systems: dict[str, str] = {}
    for system, names in learned.items():
        missing = learned[baseline] - names
        if len(missing) != 1 or not names < learned[baseline] or system not in figures:
            continue
        both = {**changes[baseline], **changes[system]}
        other = [key for key in both if changes[baseline].get(key) != changes[system].get(key)]
        if other == ["data.train"] and (asked != min(missing)).any() and {*figures[system]} & {*figures[baseline]}:
            systems.setdefault(min(missing), system)
    without = {name: figures[system] for name, system in systems.items()}
    gaps = left_out_gaps(figures[baseline], without, {name: asked != name for name in systems})
    return {name: {"system": system, **gaps[name]} for name, system in systems.items()}
