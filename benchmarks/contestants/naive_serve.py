"""A server as many write it first: FastAPI, and sentence-transformers once a request. Does not know hone."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
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


def load(model: str, form: str, passages: str) -> dict[str, Any]:
    """Serve ``model`` by plain functions (in FastAPI's threads) or async ones, as ``form`` says.

    The folder ``passages``, "" for none, has vectors.npy float32 [n, dim] and ids.json, which /search compares with.
    """
    encoder = SentenceTransformer(model, device="cpu")
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
    columns = np.ascontiguousarray(np.load(passages / "vectors.npy").T)
    ids = json.loads((passages / "ids.json").read_text())

    def found(asked: Queries) -> dict[str, Any]:
        scores = encoder.encode(asked.queries, show_progress_bar=False) @ columns
        best = np.argpartition(-scores, asked.top_k, axis=1)[:, : asked.top_k]
        results = []
        for line, rows in zip(scores, best, strict=True):
            ordered = rows[np.argsort(-line[rows])]
            results.append([{"id": ids[row], "score": float(line[row])} for row in ordered])
        return {"results": results}

    async def awaited(asked: Queries) -> dict[str, Any]:
        return found(asked)

    app.post("/search")(awaited if form == "async" else found)


if __name__ == "__main__":
    compete({"load": load}, ["sentence-transformers", "fastapi", "torch", "numpy"])
    os._exit(0)  # the server's own threads would wait for requests for ever
