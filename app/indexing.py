"""Indexing by hand: a data set with a model as it is, or a store's newest checkpoint again.

Does not know training, nor how a generation is built.
"""

from pathlib import Path

from app.opening import encoder_opener
from app.progress import Meter, Report
from indexer.builder import BuildInputs, BuildProgress, IndexConfig, build_generation
from retriever.artifacts import CURRENT, Artifact
from retriever.beir import find_file
from retriever.checkpoint import publish_model
from retriever.data import Corpus, QuerySet
from retriever.encoder import ModelConfig, create_encoder
from retriever.errors import InputError
from retriever.ingest import ingest_corpus, load_query_set
from retriever.store import Store


def index_data(
    store_root: Path, data: Path, model: str, config: IndexConfig, report: Report, *, skip_missing: bool = False
) -> Artifact:
    """Ingest the BEIR folder ``data`` and publish a generation of it, encoded by ``model`` as it is."""
    find_file(data, "corpus.jsonl")
    encoder = create_encoder(ModelConfig(name=model))
    store = Store(store_root, create=True)
    corpus = Corpus(ingest_corpus(store, data))
    dev = _dev_queries(data, corpus, report, skip_missing=skip_missing)
    checkpoint = publish_model(store, encoder, {"corpus": corpus.number})
    inputs = BuildInputs(encoder_opener(config.precision), corpus, dev, config)
    return build_generation(store, checkpoint, inputs, Meter(report), lambda text: report("warning", message=text))


def rebuild(
    store: Store, config: IndexConfig | None, report: Report, progress: BuildProgress | None = None
) -> Artifact:
    """Publish a new generation of the store's newest checkpoint over its newest corpus.

    Without ``config`` the newest generation's choices are kept. There are no dev queries in a store, so the gate
    has no metric to compare and serves it.
    """

    def warn(message: str) -> None:
        report("warning", message=message)

    checkpoint, corpus = store.checkpoints.intact(CURRENT, warn), store.corpora.intact(CURRENT, warn)
    if checkpoint is None or corpus is None:
        raise InputError(f"{store.root}: nothing to rebuild; begin with `hone index DATA` or `hone train run.toml`")
    if config is None:
        newest = store.generations.get()
        config = IndexConfig(**newest.facts["index_config"]) if newest is not None else IndexConfig()
    inputs = BuildInputs(encoder_opener(config.precision), Corpus(corpus), None, config)
    return build_generation(store, checkpoint, inputs, progress or Meter(report), warn)


def _dev_queries(data: Path, corpus: Corpus, report: Report, *, skip_missing: bool) -> QuerySet | None:
    try:
        find_file(data, "qrels/dev.tsv")
    except InputError:
        return None

    def warn(message: str) -> None:
        report("warning", message=message)

    return load_query_set(data, "dev", corpus, skip_missing=skip_missing, warn=warn)
