"""A server as many write it first: FastAPI, and sentence-transformers once a request. Does not know hone."""

import os
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

from benchmarks.contest import compete
from benchmarks.contestants.serving_thread import serve


class Texts(BaseModel):
    """What is asked."""

    inputs: list[str]


def load(model: str, form: str) -> dict[str, Any]:
    """Serve ``model`` by a plain function (in FastAPI's threads) or an async one, as ``form`` says."""
    encoder = SentenceTransformer(model, device="cpu")
    app = FastAPI()

    def encoded(texts: Texts) -> dict[str, Any]:
        return {"embeddings": encoder.encode(texts.inputs, show_progress_bar=False).tolist()}

    async def awaited(texts: Texts) -> dict[str, Any]:
        return encoded(texts)

    app.post("/encode")(awaited if form == "async" else encoded)
    return {"port": serve(app)}


if __name__ == "__main__":
    compete({"load": load}, ["sentence-transformers", "fastapi", "torch"])
    os._exit(0)  # the server's own threads would wait for requests for ever
