"""Checkpoints: the model, and all that exact resumption needs beside it.

Random states are not among that: each step seeds its generators from (seed, step, rank), see docs/decisions.
Does not know when a checkpoint is due.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from retriever.artifacts import Artifact
from retriever.encoder import DualEncoder, load_encoder
from retriever.errors import CorruptError
from retriever.store import Store


@dataclass
class TrainingState:
    """Where training stands: everything but the tensors.

    ``step`` counts finished optimiser steps; it fixes the learning rate, the place in the batch plan and the random
    states. ``best`` and ``bad_generations`` belong to early stopping; ``judged`` is the last generation it counted.
    ``temperature`` is log τ where it is learned.
    """

    seed: int
    step: int = 0
    best: float | None = None
    bad_generations: int = 0
    judged: int = -1
    temperature: float | None = None


def publish_checkpoint(
    store: Store,
    model: DualEncoder,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    save_more: Callable[[Path], None],
    parents: dict[str, int],
    facts: dict[str, Any],
) -> Artifact:
    """Publish model, optimiser and ``state``; ``facts`` (refresh, final …) are added to step and weights_sha256.

    ``save_more`` may add files to the folder that it is given.
    """
    with store.checkpoints.stage(parents) as draft:
        model.save(draft.path / "model")
        training = draft.path / "training"
        training.mkdir()
        tensors, groups = _flatten(optimizer)
        save_file(tensors, training / "optimizer.safetensors")
        (training / "state.json").write_text(json.dumps({**asdict(state), "groups": groups}) + "\n")
        save_more(training)
        weights = model.weights_sha256()
        draft.facts.update(step=state.step, weights_sha256=weights, model=asdict(model.config), **facts)
    return store.checkpoints.at(draft.number)


def publish_model(store: Store, model: DualEncoder, parents: dict[str, int]) -> Artifact:
    """Publish a model that was not trained here as a checkpoint of step 0, or return CURRENT if it is that one."""
    weights = model.weights_sha256()
    newest = store.checkpoints.get()
    if (
        newest is not None
        and newest.facts["weights_sha256"] == weights
        and newest.facts["model"] == asdict(model.config)
    ):
        return newest
    with store.checkpoints.stage(parents) as draft:
        model.save(draft.path / "model")
        draft.facts.update(step=0, weights_sha256=weights, model=asdict(model.config), refresh=False, final=False)
    return store.checkpoints.at(draft.number)


def restore_training(artifact: Artifact, model: DualEncoder, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Load the weights into ``model``, the optimiser's state into ``optimizer``, and return the rest.

    Raises CorruptError if one does not fit.
    """
    folder = artifact.path / "training"
    try:
        model.load_state_dict(load_encoder(model_folder(artifact)).state_dict())
        saved = json.loads((folder / "state.json").read_text())
        groups = saved.pop("groups")
        _restore(optimizer, load_file(folder / "optimizer.safetensors"), groups)
        return TrainingState(**saved)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CorruptError(f"{folder}: cannot be resumed ({error})") from error


def can_be_resumed(artifact: Artifact) -> bool:
    """Tell whether a checkpoint comes from training, not from a model that was taken as it is."""
    return (artifact.path / "training").is_dir()


def _flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    state = optimizer.state_dict()
    tensors = {
        f"{parameter}.{name}": value.contiguous()
        for parameter, values in state["state"].items()
        for name, value in values.items()
    }
    return tensors, state["param_groups"]


def _restore(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], groups: list[dict[str, Any]]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def model_folder(artifact: Artifact) -> Path:
    """Return the folder of the weights in a checkpoint or generation."""
    return artifact.path / "model"
