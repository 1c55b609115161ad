"""hone's way from texts to negatives: ingest, encode, index, check, mine, publish. Does not know its peers."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from app.opening import encoder_opener
from benchmarks.contest import compete
from indexer.builder import BuildInputs, build_generation
from indexer.factory import IndexConfig
from miner.mining import MiningConfig, MiningTask
from miner.publish import publish_negative_set
from miner.samplers import SamplerConfig
from miner.stored_pool import StoredPool
from retriever.artifacts import Artifact
from retriever.checkpoint import publish_model
from retriever.data import Corpus, QuerySet
from retriever.encoder import ModelConfig, create_encoder
from retriever.ingest import ingest_corpus, load_query_set
from retriever.negatives import open_negative_set
from retriever.protocols import silent
from retriever.store import Store

SEED = 13
LOADED: dict[str, Any] = {}


def load(data: str, settings: dict[str, Any], scratch: str, depth: int, negatives: int) -> dict[str, Any]:
    """Load the model; ``settings`` are those of [index]. Mines ``negatives`` of ``depth`` candidates a query."""
    LOADED.update(model=create_encoder(ModelConfig()), config=IndexConfig(**settings), data=Path(data))
    LOADED.update(root=Path(scratch) / "store", depth=depth, negatives=negatives)
    return {}


def work() -> dict[str, Any]:
    """Mine into a new store."""
    shutil.rmtree(LOADED["root"], ignore_errors=True)
    store = Store(LOADED["root"], create=True)
    corpus = Corpus(ingest_corpus(store, LOADED["data"]))
    train = load_query_set(LOADED["data"], "train", corpus, warn=print)
    checkpoint = publish_model(store, LOADED["model"], {"corpus": corpus.number})
    return _mine(store, corpus, train, checkpoint)


def again() -> dict[str, Any]:
    """Build another generation of the same checkpoint, in the store that ``work`` left, and mine it."""
    store = Store(LOADED["root"])
    corpus = Corpus(store.corpora.at(0))
    return _mine(store, corpus, load_query_set(LOADED["data"], "train", corpus, warn=print), store.checkpoints.at(0))


def _mine(store: Store, corpus: Corpus, train: QuerySet, checkpoint: Artifact) -> dict[str, Any]:
    if "opener" not in LOADED:
        LOADED["opener"] = encoder_opener(LOADED["config"], corpus)
    opener = LOADED["opener"]
    inputs = BuildInputs(opener, corpus, None, LOADED["config"])
    generation = build_generation(store, checkpoint, inputs, lambda *place: None, print)
    config = MiningConfig(depth=LOADED["depth"], relative_margin=None, sampler=SamplerConfig("top"))
    task = MiningTask(corpus, train, config, SEED)
    published = publish_negative_set(store, generation, opener, task, silent, print)
    pool = StoredPool(open_negative_set(published.path), published.number, config.sampler, LOADED["negatives"], SEED, 1)
    drawn = pool.draw(np.arange(len(train), dtype=np.int32), 0)
    ids = [[corpus.id(row) for row in rows] for rows in drawn.rows.tolist()]
    negatives = dict(zip(train.ids, ids, strict=True))
    return {"negatives": negatives, "computed_by": generation.facts["computed_by"]}


if __name__ == "__main__":
    compete({"load": load, "work": work, "again": again}, ["transformers", "torch", "faiss-cpu"])
