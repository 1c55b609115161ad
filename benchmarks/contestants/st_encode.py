"""sentence-transformers' encoder, over passages and over single queries. Does not know hone."""

import json
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.contest import compete

LOADED: dict[str, Any] = {}
BATCH: dict[str, int] = {}


def load(
    model: str,
    backend: str,
    settings: dict[str, str],
    device: str = "cpu",
    max_length: int | None = None,
    batch_size: int = 32,
    autocast: bool = False,
) -> dict[str, Any]:
    """Open the encoder; ``settings`` go to the backend, {} is the default; ``autocast``: bf16 while it encodes."""
    LOADED["model"] = SentenceTransformer(model, device=device, backend=backend, model_kwargs=settings)  # type: ignore[arg-type]  # a literal, but from a JSON line
    if max_length is not None:
        LOADED["model"].max_seq_length = max_length
    BATCH["size"] = batch_size
    LOADED["cast"] = partial(torch.autocast, "cpu", torch.bfloat16) if autocast else nullcontext
    return {}


def work(passages: str) -> dict[str, Any]:
    """Encode the passages of a JSON file."""
    texts = json.loads(Path(passages).read_text())
    with LOADED["cast"]():
        vectors = LOADED["model"].encode(texts, show_progress_bar=False, batch_size=BATCH["size"])
    return {"vectors": np.asarray(vectors, np.float32)}


def ask(queries: str) -> dict[str, Any]:
    """Encode the queries of a JSON file one after the other."""
    seconds, vectors = [], []
    for query in json.loads(Path(queries).read_text()):
        began = time.perf_counter()
        with LOADED["cast"]():
            vectors.append(LOADED["model"].encode([query], show_progress_bar=False))
        seconds.append(time.perf_counter() - began)
    return {"seconds": float(np.median(seconds)), "vectors": np.concatenate(vectors).astype(np.float32)}


if __name__ == "__main__":
    compete({"load": load, "work": work, "ask": ask}, ["sentence-transformers", "transformers", "torch"])
