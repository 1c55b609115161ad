"""A refresher whose makers write a line each, and the checkpoints that it follows. Does not know FAISS."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from indexer.promotion import promote_if_good
from miner.loop import Adopt, Retention, refresh
from retriever.artifacts import Artifact, Series
from retriever.store import Store


def mark(store: Store, step: int, **facts: Any) -> int:
    """Publish a checkpoint, as the trainer does, and return its number."""
    with store.checkpoints.stage({}) as draft:
        (draft.path / "weights").write_text(f"weights of step {step}")
        draft.facts.update(step=step, **facts)
    return draft.number


def run_of_four(store: Store) -> None:
    mark(store, 0, refresh=True)
    mark(store, 50)
    mark(store, 100, refresh=True)
    mark(store, 200, refresh=True)
    mark(store, 300, final=True)


def spoil(artifact: Artifact) -> None:
    """Change one byte of the artifact's file without changing its length."""
    (path,) = (path for path in artifact.path.iterdir() if path.name != "manifest.json")
    path.write_bytes(b"#" + path.read_bytes()[1:])


def import_set(store: Store) -> int:
    """Publish a negative set that was not mined from a checkpoint, and return its number."""
    with store.negatives.stage({"corpus": 0}) as draft:
        (draft.path / "passages.npy").write_text("from elsewhere")
    return draft.number


def lineage(series: Series) -> list[tuple[int, int, dict[str, int]]]:
    """Return number, step and parents of all artifacts of a kind."""
    found = [series.at(number) for number in series.numbers()]
    return [(artifact.number, artifact.facts["step"], dict(artifact.parents)) for artifact in found]


@dataclass
class Refresher:
    """A refresher whose makers write a line each, and what it did."""

    store: Store
    adopt: Adopt = "scheduled"
    retention: Retention = field(default_factory=lambda: Retention(grace_seconds=0))
    stop: Event = field(default_factory=Event)
    built: list[int] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    while_building: Callable[[int], object] = lambda step: None
    stop_after: str = ""

    def build(self, checkpoint: Artifact) -> Artifact:
        step = checkpoint.facts["step"]
        self.while_building(step)
        with self.store.generations.stage({"checkpoint": checkpoint.number, "corpus": 0}) as draft:
            (draft.path / "index.faiss").write_text(f"index of step {step}")
            draft.facts.update(step=step, final=checkpoint.facts.get("final", False), dev={}, seconds={})
            draft.facts.update(passage_fingerprint=f"fingerprint-{step}", weights_sha256=f"weights-{step}")
        (self.store.embeddings / f"fingerprint-{step}").mkdir(exist_ok=True)
        self.built.append(step)
        generation = self.store.generations.at(draft.number)
        promote_if_good(self.store, generation)
        return generation

    def publish(self, generation: Artifact) -> Artifact:
        with self.store.negatives.stage({**generation.parents, "generation": generation.number}) as draft:
            (draft.path / "passages.npy").write_text(f"negatives of step {generation.facts['step']}")
            scores = f"scores-{generation.facts['step']}"
            (self.store.teacher / scores).mkdir(parents=True, exist_ok=True)
            draft.facts.update(
                step=generation.facts["step"], final=generation.facts["final"], teacher={"cache": scores}
            )
        return self.store.negatives.at(draft.number)

    def report(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))
        if event == self.stop_after:
            self.stop.set()

    def run(self) -> "Refresher":
        refresh(self.store, self.build, self.publish, self.stop, self.adopt, self.report, self.retention)
        return self

    def told(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]
