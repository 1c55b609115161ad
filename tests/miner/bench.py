"""A store, its corpus and what is mined for, that the miner's tests share. They do not know torch."""

from dataclasses import dataclass, field, replace
from typing import Any

from indexer.builder import BuildInputs, build_generation
from indexer.factory import IndexConfig
from miner.mining import MiningConfig, MiningTask
from miner.publish import publish_negative_set
from retriever.artifacts import Artifact
from retriever.data import Corpus
from retriever.protocols import silent
from retriever.store import Store
from tests.stand_ins import HashEncoder

DEPTH = 20


@dataclass
class Bench:
    """A store with one corpus, and a generation of it for each call of ``generation``."""

    store: Store
    corpus: Corpus
    task: MiningTask
    said: list[str]
    opened: list[int] = field(default_factory=list)

    def generation(self, step: int = 0, seed: int = 0, **facts: Any) -> Artifact:
        """Publish a checkpoint and its generation."""
        with self.store.checkpoints.stage({}) as draft:
            (draft.path / "model").mkdir()
            (draft.path / "model" / "weights").write_text(f"seed {seed}")
            draft.facts.update(step=step, weights_sha256=f"weights-{seed}", **facts)
        inputs = BuildInputs(lambda checkpoint: HashEncoder(seed=seed), self.corpus, None, IndexConfig())
        checkpoint = self.store.checkpoints.at(draft.number)
        return build_generation(self.store, checkpoint, inputs, lambda *place: None, self.said.append)

    def publish(self, generation: Artifact, task: MiningTask | None = None, seed: int = 0) -> Artifact:
        """Mine the generation with the encoder of ``seed``, others with their own."""

        def open_encoder(artifact: Artifact) -> HashEncoder:
            return HashEncoder(seed=seed) if artifact.number == generation.number else self.encoder_of(artifact)

        task = task or self.task
        return publish_negative_set(self.store, generation, open_encoder, task, silent, self.said.append)

    def encoder_of(self, generation: Artifact) -> HashEncoder:
        """Open a generation's own encoder."""
        self.opened.append(generation.number)
        return HashEncoder(seed=int(generation.facts["weights_sha256"].removeprefix("weights-")))

    def with_config(self, **knobs: Any) -> MiningTask:
        """Return the task under another [negatives]."""
        return replace(self.task, config=MiningConfig(**{"depth": DEPTH, **knobs}))
