"""Indexing by hand: a data set with a model as it is, or again what a store serves, over other passages or the same.

Does not know training, nor how a generation is built.
"""

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from app.opening import encoder_opener, warn_of_cuts
from app.progress import Meter, Report
from app.rankers import held_ranker
from indexer.builder import BuildInputs, BuildProgress, RankerFiles, build_generation, ranker_of
from indexer.dev_record import read_record
from indexer.factory import IndexConfig, check_config
from indexer.gate import is_partial
from indexer.promotion import intact_served
from indexer.shards import drop_unused
from indexer.slices import check_slices
from miner.loop import Retention
from retriever.artifacts import CURRENT, Artifact, Series
from retriever.beir import find_file
from retriever.checkpoint import can_be_resumed, publish_model
from retriever.data import Corpus, QuerySet
from retriever.encoder import PACKAGED_MODEL, ModelConfig, create_encoder
from retriever.errors import BusyError, CorruptError, InputError, StoreError
from retriever.ingest import ingest_corpus, load_query_set
from retriever.merging import merged_facts
from retriever.store import KINDS, SINGULAR, Store, is_store

POLL_SECONDS = 1.0


def index_data(
    store_root: Path,
    data: Path,
    model: str | None,
    changes: Mapping[str, Any],
    report: Report,
    *,
    ranker: RankerFiles | None = None,
    skip_missing: bool = False,
) -> Artifact:
    """Ingest the BEIR folder ``data`` and publish a generation of it, encoded by ``model`` as it is, with ``ranker``.

    ``changes`` are those of [index] to its defaults. ``model`` None: minilm, or in a store whose training has ended
    what ``rebuild`` makes over the new passages. Raises InputError for what does not fit or a store whose training
    could not go on, and BusyError where another process trains or builds, before anything is published.
    """

    def warn(message: str) -> None:
        report("warning", message=message)

    find_file(data, "corpus.jsonl")
    if model is None and is_store(store_root) and (trained := _training(Store(store_root))) is not None:
        opened = Store(store_root)
        _refuse_unfinished(opened, trained)
        with opened.generations.writer(), opened.checkpoints.writer():
            ingest_corpus(opened, data, skipping=warn if skip_missing else None)
            return rebuild(opened, changes, report, ranker=ranker)
    model, config = model or PACKAGED_MODEL, IndexConfig(**changes)
    encoder = create_encoder(ModelConfig(name=model))
    loaded: list[QuerySet | None] = []

    def load(corpus: Corpus) -> None:
        check_config(config, encoder.dimensions, len(corpus))
        dev = _dev_queries(data, corpus, warn, skip_missing=skip_missing)
        check_slices(config.slices, dev)
        loaded.append(dev)

    store = Store(store_root, create=True)
    with store.generations.writer():
        with store.checkpoints.writer():
            _refuse_trained(store)
            corpus = Corpus(ingest_corpus(store, data, load, warn if skip_missing else None))
            checkpoint = publish_model(store, encoder, {"corpus": corpus.number}, merged_facts(model), warn)
        open_encoder = encoder_opener(config, corpus, report)
        inputs = BuildInputs(open_encoder, corpus, loaded[-1], config, ranker=ranker, open_ranker=held_ranker)
        generation = build_generation(store, checkpoint, inputs, Meter(report), warn)
        warn_of_cuts(open_encoder(checkpoint), warn)
    _tidy(store, report)
    return generation


def _training(store: Store) -> Artifact | None:
    """Return the newest checkpoint of a store that was trained in, None for another store."""
    newest = store.checkpoints.get()
    return newest if newest is not None and can_be_resumed(newest) else None


def _refuse_trained(store: Store) -> None:
    """Raise InputError for a store whose training could not go on behind a model that was taken as it is."""
    if (newest := _training(store)) is not None:
        raise InputError(
            f"{store.root}: holds a training (checkpoint {newest.number}) that could not go on behind another model; "
            "--store names another store, and without --model the model that this one serves is taken"
        )


def _refuse_unfinished(store: Store, newest: Artifact) -> None:
    """Raise InputError for a training, of which ``newest`` is the checkpoint, that has still to go on."""
    if not newest.facts.get("final"):
        raise InputError(
            f"{store.root}: its training (checkpoint {newest.number}) has not ended, and goes on with its own corpus "
            "alone; `hone train` ends it, --store names another store"
        )


def rebuild(
    store: Store,
    changes: Mapping[str, Any],
    report: Report,
    progress: BuildProgress | None = None,
    ranker: RankerFiles | None = None,
) -> Artifact:
    """Publish a new generation over the store's newest corpus, of the checkpoint that is served (else the newest).

    It is made as the served one was, but for ``changes`` of [index]; another factory begins with parameters of its own.
    Without ``ranker`` it has the served one's. Dev queries are those that the served generation keeps.
    """

    def warn(message: str) -> None:
        report("warning", message=message)

    try:
        served = intact_served(store, warn)
    except CorruptError as error:  # a rebuild is what mends it
        warn(f"{error}; built from the newest checkpoint, by the defaults of [index], without dev queries or ranker")
        served = None
    checkpoint = store.checkpoints.intact(CURRENT, warn)
    if served is not None:
        checkpoint = store.checkpoints.at(served.parents["checkpoint"])
        checkpoint.verify()
    corpus = store.corpora.intact(CURRENT, warn)
    if checkpoint is None or corpus is None:
        raise InputError(f"{store.root}: nothing to rebuild; begin with `hone index DATA` or `hone train run.toml`")
    as_served = {} if served is None else served.facts["index_config"]
    if "factory" in changes:
        as_served = {**as_served, "search": {}}
    config = IndexConfig(**{**as_served, **changes})
    opened = Corpus(corpus)
    kept = None if served is None else read_record(served)
    dev = None if kept is None else kept.query_set(opened, warn)
    ranker = ranker or (None if served is None else ranker_of(served))
    open_encoder = encoder_opener(config, opened, report)
    inputs = BuildInputs(open_encoder, opened, dev, config, ranker=ranker, open_ranker=held_ranker)
    generation = build_generation(store, checkpoint, inputs, progress or Meter(report), warn)
    warn_of_cuts(open_encoder(checkpoint), warn)
    _tidy(store, report)
    return generation


def rebuild_or_wait(store: Store, report: Report, progress: BuildProgress) -> Artifact:
    """Rebuild as ``rebuild`` does; where a refresher is at work, take the full generation that it publishes next."""
    before = store.generations.pointed(CURRENT)
    while True:
        try:
            with store.generations.writer():
                return rebuild(store, {}, report, progress)
        except BusyError:
            newest = store.generations.get()
            if newest is not None and newest.number != before and not is_partial(newest.facts):
                return newest
        progress("waiting for the refresher", 0, 1)
        time.sleep(POLL_SECONDS)


def _tidy(store: Store, report: Report) -> None:
    """Remove what a build has made old, by the rule of the refresher; nothing while another process writes.

    Where no training goes on that keeps its own, checkpoints and corpora go with their last generation.
    """
    try:
        with ExitStack() as held:
            for kind in KINDS:
                held.enter_context(store.series(kind).writer())
            _retain(store, "generations", Retention().generations, _mined_from(store), report)
            if _training(store) is None:
                for kind in ("checkpoints", "corpora"):
                    _retain(store, kind, 1, _parents(store.generations, kind), report)
            drop_unused(store)
    except BusyError:
        return  # a trainer or refresher, which tidies up itself
    except StoreError as error:
        report("warning", message=f"{error}; nothing old is removed")


def _retain(store: Store, kind: str, keep: int, also: Collection[int], report: Report) -> None:
    removed = store.retain(kind, keep, Retention().grace_seconds, also)
    if removed:
        report("removed", kind=kind, numbers=removed)


def _mined_from(store: Store) -> set[int]:
    """Return the generations that a training that goes on may read: those behind each of its negative sets.

    Where its sources count generations back, all from the earliest on: the next set counts them again.
    """
    needed = _parents(store.negatives, "generations")
    sets = [store.negatives.at(number) for number in store.negatives.numbers()]
    if any(name.startswith("generation:-") for one in sets for name in one.parents):
        needed = {number for number in store.generations.numbers() if number >= min(needed)}
    return needed


def _parents(series: Series, kind: str) -> set[int]:
    return {parent for number in series.numbers() for parent in series.at(number).numbers_of(SINGULAR[kind])}


def _dev_queries(data: Path, corpus: Corpus, warn: Callable[[str], None], *, skip_missing: bool) -> QuerySet | None:
    try:
        find_file(data, "qrels/dev.tsv")
    except InputError:
        return None
    return load_query_set(data, "dev", corpus, skip_missing=skip_missing, warn=warn)
