"""A refresh of hone's from checkpoint to negative set, in the ways there are. Does not know how long each may take."""

from pathlib import Path
from typing import Any

import torch

from app.composition import Run, open_run
from app.refreshing import RefreshSteps
from benchmarks.contest import compete
from retriever.artifacts import Artifact
from retriever.encoder import DualEncoder, create_encoder

NOISE = 1e-3
"""Share of a weight's own spread by which each refresh finds it moved."""
OPENED: dict[str, Any] = {}


def load(config: str, store: str) -> dict[str, Any]:
    """Open the run, whose method is "partial", and make the full generation that a partial one follows."""
    run = open_run(Path(config), Path(store), skip_missing=False, warn=lambda _: None)
    OPENED.update(run=run, model=create_encoder(run.config.model), step=0)
    _refresh(run, is_partial=False)
    return {}


def full() -> dict[str, Any]:
    """Refresh from other weights, every passage encoded."""
    _move(OPENED["model"])
    _refresh(OPENED["run"], is_partial=False)
    return {}


def partial() -> dict[str, Any]:
    """Refresh from other weights, a share of the passages encoded."""
    _move(OPENED["model"])
    return {"encoded": _refresh(OPENED["run"], is_partial=True).facts["partial"]["encoded_rows"]}


def unchanged() -> dict[str, Any]:
    """Refresh from the weights of the refresh before, which must have been a full one."""
    _refresh(OPENED["run"], is_partial=False)
    return {}


def _move(model: DualEncoder) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=NOISE * weight.std(correction=0).item())


def _refresh(run: Run, *, is_partial: bool) -> Artifact:
    """Publish the model as a checkpoint, its generation and its negative set; what is final gets a full one."""
    model: DualEncoder = OPENED["model"]
    with run.store.checkpoints.stage({"corpus": run.corpus.number}) as draft:
        model.save(draft.path / "model")
        draft.facts.update(step=OPENED["step"], weights_sha256=model.weights_sha256(), final=not is_partial)
    OPENED["step"] += 1
    steps = RefreshSteps(run, lambda *_, **__: None)
    generation = steps.build(run.store.checkpoints.at(draft.number))
    steps.mine(generation)
    return generation


if __name__ == "__main__":
    compete({"load": load, "full": full, "partial": partial, "unchanged": unchanged}, ["torch", "faiss-cpu"])
