"""Stand-ins around a real trainer: a refresher that mines at once, negatives by arithmetic, batches in order."""

import atexit
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from retriever.artifacts import Artifact
from retriever.batch_step import Gather
from retriever.data import Corpus
from retriever.encoder import DualEncoder, ModelConfig, create_encoder
from retriever.examples import Examples
from retriever.ingest import load_query_set
from retriever.learner import TrainConfig
from retriever.lora import LoraConfig
from retriever.losses.contrastive import LossConfig
from retriever.negatives import create_negative_set
from retriever.pair_memory import AuditConfig, PairMemory
from retriever.phases import RETRIEVER_ALONE, PhasesConfig
from retriever.protocols import BatchPlanner, FloatArray, IntArray, Negatives
from retriever.ranker import start_ranker
from retriever.ranker_learner import RankerParts, RankerTrainConfig
from retriever.refresh_policy import RefreshConfig
from retriever.retriever_learner import EncodeQueries, RetrieverParts
from retriever.store import Store
from retriever.teacher import Teacher
from retriever.trainer import Outcome, Trainer, Training
from tests.stand_ins import tiny_store, write_tiny_data
from tests.tiny_model import write_tiny_model
from tests.tiny_ranker import write_tiny_ranker

TRAIN = TrainConfig(
    max_steps=7,
    batch_size=4,
    num_negatives=2,
    learning_rate=1e-3,
    warmup_steps=2,
    accumulation=2,
    precision="fp32",
    device="cpu",
    save_every=4,
    keep_checkpoints=20,
)
REFRESH = RefreshConfig(trigger="steps:3", adopt="ready")
LOSS = LossConfig()


Hears = Callable[[str, dict[str, Any], Event], object]


class Killed(BaseException):
    """The process ended here."""


def ignore(event: str, fields: dict[str, Any], stop: Event) -> None:
    """Let a run go on."""


def stopping_at(event: str, step: int) -> Hears:
    """Return what sets the stop event once ``event`` tells of ``step``."""

    def hear(name: str, fields: dict[str, Any], stop: Event) -> None:
        if (name, fields.get("step")) == (event, step):
            stop.set()

    return hear


def killing_at(event: str, step: int) -> Hears:
    """Return what ends the process without a word once ``event`` tells of ``step``."""

    def hear(name: str, fields: dict[str, Any], stop: Event) -> None:
        if (name, fields.get("step")) == (event, step):
            raise Killed

    return hear


class InOrder:
    """A BatchPlanner: the queries in order, turned by one place an epoch."""

    def __init__(self, queries: int, batch_size: int) -> None:
        self._queries, self._batch_size = queries, batch_size

    def plan(self, epoch: int, bank: FloatArray | None = None) -> IntArray:
        """Return query rows int32 [batches, batch size]."""
        order = np.roll(np.arange(self._queries, dtype=np.int32), -epoch)
        return np.resize(order, (self._queries // self._batch_size, self._batch_size))


class Counted:
    """A NegativeSource: two passages a query, of a source each, by set, query and position; notes each draw."""

    def __init__(self, number: int, passages: int, draws: list[tuple[int, int]]) -> None:
        self._number, self._passages, self._draws = number, passages, draws

    def draw(self, query_rows: IntArray, step: int) -> Negatives:
        """Return negatives int32 [batch, 2]; the second place of every other query is empty."""
        self._draws.append((step, self._number))
        first = (query_rows * 7 + self._number * 3 + step * 5 + 1) % self._passages
        rows = np.stack([first, (first + 11) % self._passages], axis=1).astype(np.int32)
        mask = np.ones(rows.shape, np.bool_)
        mask[::2, 1] = False
        sources = np.where(mask, np.array([1, 8]), 0).astype(np.uint8)
        return Negatives(np.where(mask, rows, -1).astype(np.int32), np.zeros(rows.shape, np.float32), mask, sources)


class MinesAtOnce:
    """A Refresher inside the trainer's process: a marked checkpoint has generation and negatives when ``marked`` ends.

    ``dev`` gives the dev metric of the generation of a step; None is a run without dev queries.
    """

    def __init__(self, store: Store, dev: Callable[[int], float | None] = lambda step: None) -> None:
        self._store, self._dev = store, dev
        self.sources = {"ann": 1}
        self.marks: list[int] = []

    def marked(self, checkpoint: Artifact) -> None:
        """Publish what a refresher would."""
        step, value = checkpoint.facts["step"], self._dev(checkpoint.facts["step"])
        self.marks.append(step)
        with self._store.generations.stage({"checkpoint": checkpoint.number}) as draft:
            (draft.path / "index.faiss").write_text(f"index of step {step}")
            draft.facts.update(step=step, dev=None if value is None else {"nDCG@10": value})
        parents = {"checkpoint": checkpoint.number, "generation": draft.number}
        dev = draft.facts["dev"]
        with self._store.negatives.stage(parents) as mined:
            pool = create_negative_set(mined.path, queries=4, depth=12, positives=1)
            pool.passages[:] = (np.arange(48) * 7 + step).reshape(4, 12) % 60
            pool.positives[:, 0] = np.arange(4)
            pool.scores[:] = np.linspace(0.9, 0.1, 12)
            pool.flush()
            mined.facts.update(step=step, dev=dev, sources=self.sources)

    def trouble(self) -> str | None:
        """Return None: all is well."""
        return None


class Idle(MinesAtOnce):
    """A Refresher that never gets to work."""

    def marked(self, checkpoint: Artifact) -> None:
        """Note the mark alone."""
        self.marks.append(checkpoint.facts["step"])


@cache
def prepared() -> Path:
    """Return a folder with a data set, its corpus in a store, a tiny model and a tiny ranker, to be copied."""
    folder = Path(tempfile.mkdtemp(prefix="hone-tests-"))
    atexit.register(shutil.rmtree, folder)
    write_tiny_model(folder / "tiny")
    write_tiny_ranker(folder / "ranker")
    tiny_store(folder / "store", write_tiny_data(folder / "data"))
    return folder


@dataclass
class Bench:
    """One store with data and a model beside it; each ``run`` is a trainer process of its own.

    ``hears`` is called with each event before it is noted in ``events``; ``draws`` notes (position, set) of each draw
    of the retriever's, ``ranker_draws`` of the ranker's.
    """

    folder: Path
    train: TrainConfig = TRAIN
    refresh: RefreshConfig = REFRESH
    loss: LossConfig = LOSS
    dev: Callable[[int], float | None] = lambda step: None
    dropout: float | None = 0.2
    ranker: RankerTrainConfig | None = None
    phases: PhasesConfig = RETRIEVER_ALONE
    teacher: Callable[["Bench"], Teacher] = lambda bench: Teacher()
    tied: bool = True
    lora: LoraConfig | None = None
    audit: AuditConfig | None = None
    seed: int = 3
    hears: Hears = ignore
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    draws: list[tuple[int, int]] = field(default_factory=list)
    ranker_draws: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not (self.folder / "data").exists():
            shutil.copytree(prepared(), self.folder, dirs_exist_ok=True)
        self.store = Store(self.folder / "store")
        self.corpus = Corpus(self.store.corpora.at(0))
        self.queries = load_query_set(self.folder / "data", "train", self.corpus, skip_missing=False, warn=self.fail)
        self.refresher = MinesAtOnce(self.store, self.dev)
        self.stop = Event()

    def fail(self, message: str) -> None:
        """Take no warning."""
        raise AssertionError(message)

    def model(self) -> DualEncoder:
        """Return the model that a process starts with."""
        model = create_encoder(ModelConfig(str(self.folder / "tiny"), tied=self.tied, dropout=self.dropout))
        if self.lora is not None:
            model.adapt(self.lora, seed=3)
        return model

    def examples(self) -> Examples:
        """Return the training examples."""
        return Examples(self.corpus, self.queries, in_batch=self.loss.in_batch, seed=3)

    def report(self, event: str, **fields: Any) -> None:
        """Hear one event."""
        self.events.append((event, fields))
        self.hears(event, fields, self.stop)

    def open_source(self, artifact: Artifact, batches_per_turn: int, encode: EncodeQueries) -> Counted:
        """Open the negatives of a set."""
        assert batches_per_turn in (len(self.queries) // self.train.batch_size, 1)
        return Counted(artifact.number, len(self.corpus), self.draws)

    def open_planner(self, artifact: Artifact | None) -> BatchPlanner:
        """Plan in order, whatever the set."""
        return InOrder(len(self.queries), self.train.batch_size)

    def open_vectors(self, artifact: Artifact) -> Gather:
        """Return vectors by arithmetic."""
        return lambda rows: np.cos(rows[:, None] + np.arange(self.model().dimensions)).astype(np.float32)

    def ranker_parts(self) -> RankerParts | None:
        """Return the ranker that a process starts with, with batches of its own size."""
        config = self.ranker
        if config is None:
            return None
        model = start_ranker(config.model, 3, config.dropout)
        if config.lora is not None:
            model.adapt(config.lora, seed=3)
        return RankerParts(
            model,
            config,
            Examples(self.corpus, self.queries, in_batch=True, seed=3),
            lambda artifact: InOrder(len(self.queries), config.batch_size),
            lambda artifact, batches_per_epoch: Counted(artifact.number, len(self.corpus), self.ranker_draws),
        )

    def ranking(self) -> RankerTrainConfig:
        """Return what trains the tiny ranker."""
        return RankerTrainConfig(
            str(self.folder / "ranker"),
            dropout=self.dropout,
            batch_size=3,
            num_negatives=2,
            learning_rate=1e-3,
            warmup_steps=1,
            accumulation=2,
        )

    def memory(self) -> PairMemory | None:
        """Return the memory of pairs that a process starts with, where ``audit`` asks for one."""
        if self.audit is None:
            return None
        return PairMemory(self.queries, len(self.corpus), self.audit, 3, self.examples().positive_of)

    def retriever_parts(self) -> RetrieverParts:
        """Return the retriever that a process starts with."""
        return RetrieverParts(
            self.model(),
            self.examples(),
            self.open_planner,
            self.open_source,
            self.open_vectors,
            self.loss,
            memory=self.memory(),
            teacher=self.teacher(self),
        )

    def trainer(self) -> Trainer:
        """Return a new process's trainer over this store."""
        self.store = Store(self.folder / "store")
        parts = Training(
            store=self.store,
            retriever=self.retriever_parts(),
            refresher=self.refresher,
            report=self.report,
            train=self.train,
            refresh=self.refresh,
            seed=self.seed,
            ranker=self.ranker_parts(),
            phases=self.phases,
        )
        self.stop = Event()
        return Trainer(parts, self.stop)

    def run(self) -> Outcome:
        """Train until the end or an interruption."""
        return self.trainer().run()

    def told(self, event: str) -> list[dict[str, Any]]:
        """Return the fields of all reports of ``event``."""
        return [fields for name, fields in self.events if name == event]

    def newest(self) -> Artifact:
        """Return the newest checkpoint."""
        found = self.store.checkpoints.get()
        assert found is not None
        return found

    def both_weights(self) -> list[tuple[int, str, str]]:
        """Return (step, retriever's digest, ranker's digest) of every checkpoint."""
        found = map(self.store.checkpoints.at, self.store.checkpoints.numbers())
        return [
            (one.facts["step"], one.facts["weights_sha256"], one.facts["ranker"]["weights_sha256"]) for one in found
        ]

    def weights(self) -> str:
        """Return the digest of the newest checkpoint's weights."""
        digest: str = self.newest().facts["weights_sha256"]
        return digest

    def adoptions(self) -> Sequence[tuple[int, int]]:
        """Return (step, set) of all recorded adoptions."""
        return [(record["step"], record["set"]) for record in self.store.adoptions()]
