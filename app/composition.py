"""The composition root: from a run's configuration to the trainer, the refresher's steps and their parts.

Does not know processes, terminals or HTTP.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

from app.config import RunConfig, data_folder, read_config
from app.progress import Report
from miner.batch_plans import RandomPlan
from miner.publish import open_checked_set
from miner.stored_pool import StoredPool
from retriever.adoption import Refresher
from retriever.artifacts import Artifact
from retriever.data import Corpus, QuerySet
from retriever.encoder import create_encoder
from retriever.errors import InputError
from retriever.examples import Examples
from retriever.ingest import ingest_corpus, load_query_set
from retriever.protocols import NegativeSource
from retriever.store import Store
from retriever.trainer import Trainer, Training


@dataclass(frozen=True)
class Run:
    """A configuration with its store and data, open."""

    config: RunConfig
    store: Store
    corpus: Corpus
    train: QuerySet
    dev: QuerySet | None


def open_run(path: Path, store_root: Path, *, skip_missing: bool, warn: Callable[[str], None]) -> Run:
    """Read the run.toml at ``path``, open or make the store, ingest the corpus and load train and dev queries.

    Raises InputError for what does not fit; a corpus is published only if the queries fit it.
    """
    config = read_config(path)
    folder = data_folder(config, path)
    loaded: list[tuple[QuerySet, QuerySet | None]] = []

    def load(corpus: Corpus) -> None:
        if config.negatives.depth > len(corpus):
            raise InputError(
                f"{path}: negatives.depth = {config.negatives.depth}, but the corpus has {len(corpus)} passages"
            )
        load_split = partial(load_query_set, folder, corpus=corpus, skip_missing=skip_missing, warn=warn)
        train_split, dev_split = splits(config)
        train = with_positives(load_split(train_split), warn)
        loaded.append((train, None if dev_split is None else load_split(dev_split)))

    store = Store(store_root, config.sha256, create=True)
    corpus = Corpus(ingest_corpus(store, folder, load))
    train, dev = loaded[-1]
    return Run(config, store, corpus, train, dev)


def splits(config: RunConfig) -> tuple[str, str | None]:
    """Return the splits to train on and to evaluate on: where dev is carved off train, train is what remains."""
    train, dev = config.data.train, config.data.dev
    if dev is not None and dev.startswith(f"{train}:"):
        train = f"{train}:-{dev.partition(':')[2]}"
    return train, dev


def with_positives(queries: QuerySet, warn: Callable[[str], None]) -> QuerySet:
    """Return the queries that have a positive to learn from; the others are counted through ``warn``."""
    kept = [row for row in range(len(queries)) if len(queries.positives(row))]
    if len(kept) < len(queries):
        warn(
            f"split {queries.split}: {len(queries) - len(kept)} queries have no relevant passage and are not trained on"
        )
    return queries.subset(kept)


def make_trainer(run: Run, refresher: Refresher, report: Report, stop: Event) -> Trainer:
    """Return the trainer of ``run``."""
    config = run.config

    def open_source(artifact: Artifact, batches_per_epoch: int) -> NegativeSource:
        pool = open_checked_set(artifact, run.corpus, run.train)
        sampler, count = config.negatives.sampler, config.train.num_negatives
        return StoredPool(pool, artifact.number, sampler, count, config.seed, batches_per_epoch)

    parts = Training(
        store=run.store,
        model=create_encoder(config.model),
        examples=Examples(run.corpus, run.train, in_batch=config.loss.in_batch, seed=config.seed),
        planner=RandomPlan(len(run.train), config.train.batch_size, config.seed),
        open_source=open_source,
        refresher=refresher,
        report=report,
        train=config.train,
        loss=config.loss,
        refresh=config.refresh,
        seed=config.seed,
    )
    return Trainer(parts, stop)
