"""A server as many write it first: FastAPI, and sentence-transformers once a request. Does not know hone."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

from benchmarks.contest import compete
from benchmarks.contestants.serving_thread import serve


class Texts(BaseModel):
    """What is to be encoded."""

    inputs: list[str]


class Queries(BaseModel):
    """What is searched for."""

    queries: list[str]
    top_k: int = 10


def load(model: str, form: str, backend: str, passages: str) -> dict[str, Any]:
    """Serve ``model`` by ``backend`` in plain functions (so in FastAPI's threads) or async ones, as ``form`` says.

    The folder ``passages``, "" for none, has vectors.npy float32 [n, dim] and ids.json, which /search compares with.
    """
    encoder = SentenceTransformer(model, device="cpu", backend=backend)  # type: ignore[arg-type]  # a literal, but from a JSON line
    app = FastAPI()

    def encoded(texts: Texts) -> dict[str, Any]:
        return {"embeddings": encoder.encode(texts.inputs, show_progress_bar=False).tolist()}

    async def awaited(texts: Texts) -> dict[str, Any]:
        return encoded(texts)

    app.post("/encode")(awaited if form == "async" else encoded)
    if passages:
        _add_search(app, encoder, form, Path(passages))
    return {"port": serve(app)}


def _add_search(app: FastAPI, encoder: SentenceTransformer, form: str, passages: Path) -> None:
    vectors = torch.from_numpy(np.load(passages / "vectors.npy"))
    ids = json.loads((passages / "ids.json").read_text())

    def found(asked: Queries) -> dict[str, Any]:
        # By torch, in whose threads the model runs as well: numpy's own beside them cost 2 to 10 ms a query here.
        encoded = encoder.encode(asked.queries, show_progress_bar=False, convert_to_tensor=True)
        scores, rows = torch.topk(encoded @ vectors.T, asked.top_k)
        lines = zip(rows.tolist(), scores.tolist(), strict=True)
        return {
            "results": [[{"id": ids[row], "score": score} for row, score in zip(*line, strict=True)] for line in lines]
        }

    async def awaited(asked: Queries) -> dict[str, Any]:
        return found(asked)

    app.post("/search")(awaited if form == "async" else found)


if __name__ == "__main__":
    compete({"load": load}, ["sentence-transformers", "fastapi", "torch"])
    os._exit(0)  # the server's own threads would wait for requests for ever
