"""One relabelling from start to end: suspects of a negative set, judges, ledger, verdict file and report.

Does not know the command line, nor how a judge comes to its answers.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.composition import splits, with_positives, with_verdicts
from app.config import RunConfig, data_folder, read_config
from app.progress import Meter, Report
from app.relabel_config import RelabelConfig
from miner.judgements import Ledger
from miner.publish import open_checked_set
from miner.relabel import Outcome, Suspects, ask, find_suspects, outcomes
from miner.relabel_report import agreement, by_judge, pruning
from miner.verdicts import DROP_EXAMPLE, replace_verdicts
from retriever.artifacts import CURRENT, Artifact
from retriever.data import Corpus, QuerySet
from retriever.durable import exclusive, write_atomic
from retriever.errors import InputError
from retriever.ingest import load_query_set
from retriever.protocols import Judge, PairText, Progress
from retriever.store import Store

LEDGER, VERDICTS, REPORT = "judgements.jsonl", "verdicts.jsonl", "report.json"
KEEP_NEGATIVE, UNDECIDED = "keep_negative", "undecided"


@dataclass(frozen=True)
class Relabelling:
    """A relabel.toml with what it is about, open; ``queries`` are the training queries as the qrels have them.

    ``pairs`` are the suspects, the most suspect first.
    """

    config: RelabelConfig
    run: RunConfig
    data: Path
    corpus: Corpus
    queries: QuerySet
    negatives: Artifact
    pairs: Sequence[PairText]


def open_relabelling(
    config: RelabelConfig, path: Path, store: Store, *, skip_missing: bool, warn: Callable[[str], None]
) -> Relabelling:
    """Open the run that the relabel.toml at ``path`` names, its negative set in ``store``, and find the suspects.

    Raises InputError if there is no such set or the run's data is not what it was mined for.
    """
    run_path = path.parent / config.run
    run = read_config(run_path)
    folder = data_folder(run, run_path)
    artifact = _negative_set(store, config, run_path, warn)
    corpus = Corpus(store.corpora.at(artifact.parents["corpus"]))
    loaded = load_query_set(folder, splits(run)[0], corpus, skip_missing=skip_missing, warn=warn)
    queries = with_positives(loaded, lambda _: None)
    mined_for = with_verdicts(run, run_path.parent, corpus, queries, lambda _: None, artifact)[0]
    suspects = find_suspects(open_checked_set(artifact, corpus, mined_for), mined_for, config.suspects)
    return Relabelling(config, run, folder, corpus, queries, artifact, _pairs(suspects, corpus, mined_for, queries))


def _negative_set(store: Store, config: RelabelConfig, run_path: Path, warn: Callable[[str], None]) -> Artifact:
    if config.negatives is not None:
        artifact = store.negatives.at(config.negatives)
        artifact.verify()
        return artifact
    newest = store.negatives.intact(CURRENT, warn)
    if newest is None:
        raise InputError(f"{store.root}: no negatives to judge; `hone mine {run_path}` or `hone train` makes them")
    return newest


def _pairs(suspects: Suspects, corpus: Corpus, mined_for: QuerySet, queries: QuerySet) -> list[PairText]:
    """Return the texts; a query's positive is the first by its qrels, so that no verdict changes what is asked."""
    rows = {name: row for row, name in enumerate(queries.ids)}
    positives: dict[int, str] = {}
    pairs = []
    for query, passage in zip(suspects.queries.tolist(), suspects.passages.tolist(), strict=True):
        if query not in positives:
            positives[query] = corpus.text(int(queries.positives(rows[mined_for.ids[query]])[0]))
        ids = (mined_for.ids[query], mined_for.texts[query], corpus.id(passage), corpus.text(passage))
        pairs.append(PairText(*ids, positives[query]))
    return pairs


def estimate(work: Relabelling, folder: Path, judges: Sequence[Judge]) -> dict[str, Any]:
    """Return how much there is to ask: suspects, those that the first judge must be asked about, their characters."""
    ledger = Ledger(folder / LEDGER, {})
    fresh = [pair for pair in work.pairs if ledger.known(judges[0], pair) is None]
    characters = sum(len(pair.query) + len(pair.passage) for pair in fresh)
    return {"suspects": len(work.pairs), "to_ask": len(fresh), "characters": characters}


def carry_out(work: Relabelling, folder: Path, judges: Sequence[Judge], report: Report) -> dict[str, Any]:
    """Have the suspects judged, write ledger, verdicts and report into ``folder``, and return the report.

    A run that is broken off goes on where it was: what is in the ledger is not asked again. Raises BusyError if
    another process judges there.
    """
    started = time.monotonic()
    generation = work.negatives.parents["generation"]
    with exclusive(folder / "lock", "this relabelling"):
        ledger = Ledger(folder / LEDGER, {"negatives": work.negatives.number, "generation": generation})
        meter = Meter(report)

        def progress(judge: Judge) -> Progress:
            return meter.phase(f"judge {judge.name}")

        ask(judges, work.pairs, ledger, work.config.check, progress)
        found = _current(work, outcomes(judges, ledger))
        lines = [*_verdict_lines(found, work.config.action)]
        replace_verdicts(folder / VERDICTS, "".join(json.dumps(line) + "\n" for line in lines).encode())
        seconds = time.monotonic() - started
        told = {**_summary(work, found), **_of_judges(work, judges, ledger, found), "seconds": round(seconds, 1)}
        write_atomic(folder / REPORT, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())
    return told


def _current(work: Relabelling, found: Mapping[tuple[str, str], Outcome]) -> dict[tuple[str, str], Outcome]:
    """Leave out what was judged by texts that the data has no more: another corpus, query or positive."""
    rows = {name: row for row, name in enumerate(work.queries.ids)}
    kept = {}
    for (query, passage), outcome in found.items():
        row = work.corpus.row_of(passage)
        if row is not None and query in rows:
            positive = work.corpus.text(int(work.queries.positives(rows[query])[0]))
            pair = PairText(query, work.queries.texts[rows[query]], passage, work.corpus.text(row), positive)
            if all(entry.is_about(pair) for entry in outcome.entries):
                kept[query, passage] = outcome
    return kept


def _verdict_lines(found: Mapping[tuple[str, str], Outcome], action: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of the verdict file, whose bytes are the same as long as nothing new was judged."""
    for (query, passage), outcome in sorted(found.items()):
        last = outcome.entries[-1].line
        yield {
            "query": query,
            "passage": passage,
            "relevant": outcome.relevant,
            **({"action": action} if outcome.relevant else {}),
            "judges": {entry.judge: entry.judgement.relevant for entry in outcome.entries},
            **{key: last[key] for key in ("negatives", "generation", "time") if key in last},
        }


def _summary(work: Relabelling, found: Mapping[tuple[str, str], Outcome]) -> dict[str, Any]:
    """Return counts of this run's suspects, and of all verdicts by action."""
    of_suspects = [found.get((pair.query_id, pair.passage_id)) for pair in work.pairs]
    relevant = sum(outcome.relevant for outcome in found.values())
    actions = {work.config.action: relevant, KEEP_NEGATIVE: len(found) - relevant}
    if work.config.action == DROP_EXAMPLE:
        actions["queries_dropped"] = len({query for (query, _), outcome in found.items() if outcome.relevant})
    return {
        "negatives": work.negatives.number,
        "generation": work.negatives.parents["generation"],
        "suspects": len(work.pairs),
        "queries": len({pair.query_id for pair in work.pairs}),
        "relevant": sum(one is not None and one.relevant for one in of_suspects),
        "irrelevant": sum(one is not None and not one.relevant for one in of_suspects),
        UNDECIDED: sum(one is None for one in of_suspects),
        "actions": actions,
    }


def _of_judges(
    work: Relabelling, judges: Sequence[Judge], ledger: Ledger, found: Mapping[tuple[str, str], Outcome]
) -> dict[str, Any]:
    prune = work.config.pruning
    return {
        "judges": by_judge(ledger.added),
        "judges_in_all": by_judge(ledger.entries),
        "agreement": agreement(judges, ledger, work.config.check),
        "pruning": pruning(found, prune.group, prune.above, prune.least),
    }
