"""sentence-transformers' CrossEncoder, scoring pairs. Does not know hone."""

import json
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder

from benchmarks.contest import compete

LOADED: dict[str, CrossEncoder] = {}


def load(folder: str, settings: dict[str, str], backend: str = "torch") -> dict[str, Any]:
    """Load the ranker; ``settings`` go to the backend, {} is the default."""
    LOADED["model"] = CrossEncoder(
        folder, device="cpu", backend=backend, model_kwargs=settings, activation_fn=torch.nn.Identity()
    )
    return {"threads": torch.get_num_threads()}


def work(pairs: str) -> dict[str, Any]:
    """Score the pairs of a JSON file."""
    return {"scores": LOADED["model"].predict(json.loads(Path(pairs).read_text()), show_progress_bar=False)}


if __name__ == "__main__":
    compete({"load": load, "work": work}, ["sentence-transformers", "transformers", "torch"])
