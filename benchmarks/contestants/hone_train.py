"""hone's trainer over given triplets in their order. Does not know its peers."""

import json
import tempfile
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch

from benchmarks.pacing import Pace
from retriever.artifacts import Artifact
from retriever.batch_step import Gather
from retriever.data import Corpus
from retriever.encoder import ModelConfig, create_encoder
from retriever.examples import Examples
from retriever.ingest import ingest_corpus, load_query_set
from retriever.learner import TrainConfig
from retriever.losses.contrastive import LossConfig
from retriever.protocols import FloatArray, IntArray, Negatives
from retriever.refresh_policy import RefreshConfig
from retriever.retriever_learner import RetrieverParts
from retriever.store import Store
from retriever.trainer import Trainer, Training


class Given:
    """Queries in their order, each with its one negative: a plan of batches, a source, and a refresher without work."""

    def __init__(self, store: Store, negatives: list[int], batch_size: int) -> None:
        """``negatives`` int [queries] are rows of the corpus."""
        self._store, self._negatives, self._batch_size = store, np.array(negatives, np.int32), batch_size

    def plan(self, epoch: int, bank: FloatArray | None = None) -> IntArray:
        """Return query rows int32 [batches, batch size]."""
        return np.arange(len(self._negatives), dtype=np.int32).reshape(-1, self._batch_size)

    def draw(self, query_rows: IntArray, step: int) -> Negatives:
        """Return one negative a query."""
        rows = self._negatives[query_rows][:, None]
        return Negatives(rows, np.zeros(rows.shape, np.float32), np.ones(rows.shape, np.bool_))

    def vectors(self, artifact: Artifact) -> Gather:
        """Raise NotImplementedError: both towers are trained, so no vector stays good."""
        raise NotImplementedError

    def marked(self, checkpoint: Artifact) -> None:
        """Publish a set of negatives, so that there is one to adopt."""
        facts = {"step": checkpoint.facts["step"], "dev": None}
        with self._store.generations.stage({"checkpoint": checkpoint.number}) as generation:
            (generation.path / "index.faiss").touch()
            generation.facts.update(facts)
        parents = {"checkpoint": checkpoint.number, "generation": generation.number}
        with self._store.negatives.stage(parents) as mined:
            (mined.path / "passages.npy").touch()
            mined.facts.update(facts)

    def trouble(self) -> str | None:
        """Return None: all is well."""
        return None


def train(pace: Pace, scratch: Path) -> None:
    """Train as told by "load"."""
    told = pace.settings()

    def report(event: str, **fields: Any) -> None:
        if event == "adopted":
            pace.ready()
        if event == "step":
            pace.stepped(fields["loss"])
        if event == "warning":
            raise RuntimeError(fields["message"])

    store = Store(scratch / "store", create=True)
    data = Path(told["data"])
    corpus = Corpus(ingest_corpus(store, data))
    queries = load_query_set(data, "train", corpus, warn=lambda message: report("warning", message=message))
    given = Given(store, json.loads(Path(told["negatives"]).read_text()), told["batch_size"])
    length = told["max_length"]
    retriever = RetrieverParts(
        create_encoder(ModelConfig(dropout=told["dropout"], query_max_length=length, passage_max_length=length)),
        Examples(corpus, queries, in_batch=True, seed=0),
        open_planner=lambda artifact: given,
        open_source=lambda artifact, batches, encode: given,
        open_vectors=given.vectors,
        loss=LossConfig(temperature=told["temperature"]),
    )
    parts = Training(
        store=store,
        retriever=retriever,
        refresher=given,
        report=report,
        train=TrainConfig(
            max_steps=told["steps"],
            batch_size=told["batch_size"],
            learning_rate=told["learning_rate"],
            warmup_steps=told["warmup"],
            grad_cache=told["cached"],
            precision=told["precision"],
            device="cpu" if told["device"] == "cpu" else "auto",
            save_every=told["steps"] + 1,
        ),
        refresh=RefreshConfig(trigger=f"steps:{told['steps'] + 1}", adopt="scheduled", lag=0, probe_every=0),
        seed=0,
    )
    Trainer(parts, Event()).run()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        train(Pace(["transformers", "torch"], torch.cuda.max_memory_allocated), Path(folder))
