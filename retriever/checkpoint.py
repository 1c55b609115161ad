"""Checkpoints: the models, and all that exact resumption needs beside them.

Random states are not among that: each step seeds its generators from (seed, step, rank), see docs/decisions.
Does not know when a checkpoint is due.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from retriever.artifacts import Artifact
from retriever.encoder import DualEncoder
from retriever.errors import CorruptError, StoreError
from retriever.learner import Learner
from retriever.phases import LearnerName
from retriever.store import Store

STATE = "state.json"


@dataclass
class TrainingState:
    """Where training stands, beside what each model that learns has of its own.

    ``step`` counts finished optimiser steps; it fixes learning rates, places in the batch plans and random states.
    ``best`` and ``bad_generations`` belong to early stopping; ``judged`` is the last generation it counted.
    """

    seed: int
    step: int = 0
    best: float | None = None
    bad_generations: int = 0
    judged: int = -1


def publish_checkpoint(
    store: Store,
    learners: Mapping[LearnerName, Learner],
    state: TrainingState,
    parents: dict[str, int],
    facts: dict[str, Any],
) -> Artifact:
    """Publish what ``learners`` have learned with ``state``; ``facts`` (refresh, final …) are added to theirs."""
    with store.checkpoints.stage(parents) as draft:
        training = draft.path / "training"
        training.mkdir()
        written = asdict(state)
        for name, learner in learners.items():
            saved = learner.save(draft.path)
            written[name] = saved.state
            draft.facts.update(saved.facts)
        (training / STATE).write_text(json.dumps(written) + "\n")
        draft.facts.update(step=state.step, **facts)
    return store.checkpoints.at(draft.number)


def publish_model(
    store: Store,
    model: DualEncoder,
    parents: dict[str, int],
    facts: Mapping[str, Any] | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> Artifact:
    """Publish a model that was not trained here as a checkpoint of step 0, or return CURRENT if it is that one, intact.

    ``facts`` say more of where it comes from; ``warn`` is told of a damaged one.
    """
    told = {"model": asdict(model.config), "reads": asdict(model.fingerprints("", ""))}
    try:
        newest = store.checkpoints.get()
        if newest is not None and all(newest.facts.get(name) == value for name, value in told.items()):
            newest.verify()
            return newest
    except StoreError as error:
        warn(f"{error}; it is published anew")
    with store.checkpoints.stage(parents) as draft:
        model.save(draft.path / "model")
        draft.facts.update(step=0, weights_sha256=model.weights_sha256(), refresh=False, final=False, **told)
        draft.facts.update(facts or {})
    return store.checkpoints.at(draft.number)


def read_state(artifact: Artifact) -> tuple[TrainingState, dict[str, dict[str, Any]]]:
    """Return where training stands, and the state of each model that learns. Raises CorruptError if unreadable."""
    with resuming(artifact):
        saved = json.loads((artifact.path / "training" / STATE).read_text())
        if "groups" in saved:  # from when the retriever learned alone
            saved["retriever"] = {name: saved.pop(name) for name in ("groups", "temperature")}
        learners = {name: saved.pop(name) for name, value in list(saved.items()) if isinstance(value, dict)}
        return TrainingState(**saved), learners


@contextmanager
def resuming(artifact: Artifact) -> Iterator[None]:
    """Raise CorruptError for whatever does not fit in the block."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CorruptError(f"{artifact.path / 'training'}: cannot be resumed ({error})") from error


def can_be_resumed(artifact: Artifact) -> bool:
    """Tell whether a checkpoint comes from training, not from a model that was taken as it is."""
    return (artifact.path / "training").is_dir()


def model_folder(artifact: Artifact) -> Path:
    """Return the folder of the weights in a checkpoint or generation."""
    return artifact.path / "model"


def ranker_folder(artifact: Artifact) -> Path:
    """Return the folder of the ranker in a checkpoint or generation; it is there if its facts tell of a ranker."""
    return artifact.path / "ranker"
