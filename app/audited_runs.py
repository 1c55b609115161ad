"""The training runs that an audit reads: of a run file, of a store, or all of a comparison, over one corpus.

Does not know what is audited.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.composition import splits, with_positives, with_verdicts
from app.config import RunConfig, data_folder, read_config
from retriever.artifacts import CURRENT
from retriever.data import Corpus, QuerySet
from retriever.errors import InputError
from retriever.ingest import load_query_set
from retriever.protocols import IntArray
from retriever.store import Store, is_store

RESULTS = "results.json"

Warn = Callable[[str], None]


@dataclass(frozen=True)
class AuditedRun:
    """One training run: its store and the queries that it learns from, over the corpus that all runs share."""

    name: str
    system: str
    config: RunConfig
    store: Store
    queries: QuerySet


def find_runs(places: Sequence[Path], store: Path, config: Path | None, warn: Warn) -> tuple[list[AuditedRun], Corpus]:
    """Return the runs at ``places``: run files (with their ``store``), stores (trained by ``config``), comparisons.

    Raises InputError for a place that is none of these, and for runs over different corpora.
    """
    named = [found for place in places for found in _located(place, store, config)]
    opened: dict[tuple[object, ...], QuerySet] = {}
    runs: list[AuditedRun] = []
    corpus: Corpus | None = None
    for name, system, file, root in named:
        settings = read_config(file)
        folder, split = data_folder(settings, file), splits(settings)[0]
        own_store = Store(root)
        newest = own_store.checkpoints.get()
        if newest is None:
            raise InputError(f"{root}: nothing was trained in it; run `hone train {file}` first")
        own = Corpus(own_store.corpora.at(newest.parents["corpus"]))
        corpus = corpus or own
        if own.sha256 != corpus.sha256:
            raise InputError(f"{root}: its corpus is another than that of {runs[0].store.root}; audit them apart")
        judged = settings.negatives.verdicts
        verdicts = None if judged is None else (file.parent / judged).resolve()
        mined = own_store.negatives.intact(CURRENT, warn)
        then = () if mined is None else (mined.facts.get("verdicts_sha256"),)
        key = (folder.resolve(), split, own.sha256, verdicts, settings.negatives.on_relevant, then)
        if key not in opened:
            loaded = with_positives(load_query_set(folder, split, own, skip_missing=True, warn=warn), lambda _: None)
            opened[key] = with_verdicts(settings, file.parent, own, loaded, warn, mined)[0]
        runs.append(AuditedRun(name, system, settings, own_store, opened[key]))
    assert corpus is not None
    return runs, corpus


def _located(place: Path, store: Path, config: Path | None) -> Iterator[tuple[str, str, Path, Path]]:
    """Yield name, system, run file and store of each run at ``place``."""
    if place.is_file():
        yield place.stem, "", place, store
    elif is_store(place):
        if config is None:
            raise InputError(f"{place}: a store does not hold the queries; name its run file with --config run.toml")
        yield place.name, "", config, place
    elif (place / RESULTS).is_file():
        results = json.loads((place / RESULTS).read_bytes())
        if not results["runs"]:
            raise InputError(f"{place / RESULTS}: no run is finished; run the comparison again")
        for run in results["runs"]:
            folder = place / run["folder"]
            yield f"{run['system']} seed {run['seed']}", run["system"], folder / "run.toml", folder / "store"
    else:
        raise InputError(f"{place}: neither a run.toml, nor a store, nor the folder of a comparison that has results")


def together(sets: Sequence[QuerySet]) -> tuple[QuerySet, list[IntArray]]:
    """Return all queries of ``sets`` once, and for each set int32 [q] where its queries stand among them.

    Raises InputError if an id has another text or other judgements in two of them.
    """
    rows: dict[str, int] = {}
    ids: list[str] = []
    texts: list[str] = []
    judgements: list[Any] = []
    places = []
    for one in sets:
        for name, text, judged in zip(one.ids, one.texts, one.judgements, strict=True):
            row = rows.setdefault(name, len(ids))
            if row == len(ids):
                ids.append(name)
                texts.append(text)
                judgements.append(judged)
            elif (texts[row], dict(judgements[row])) != (text, dict(judged)):
                raise InputError(f"query {name!r} has other texts or judgements in two of the runs; audit them apart")
        places.append(np.array([rows[name] for name in one.ids], np.int32))
    return QuerySet(sets[0].split, ids, texts, judgements), places
