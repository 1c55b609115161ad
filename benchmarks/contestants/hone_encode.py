"""hone's encoder, over passages and over single queries. Does not know its peers."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import compete
from retriever.encoder import ModelConfig, create_encoder
from retriever.inference import ModelEncoder

LOADED: dict[str, ModelEncoder] = {}


def load(
    model: str,
    engine: str,
    precision: str,
    calibration: str = "",
    device: str = "cpu",
    max_length: int | None = None,
    query_precision: str = "auto",
) -> dict[str, Any]:
    """Open the encoder; ``calibration`` is a JSON file of passages, "" for none."""
    texts = json.loads(Path(calibration).read_text()) if calibration else []
    LOADED["encoder"] = ModelEncoder(
        create_encoder(ModelConfig(name=model, passage_max_length=max_length)),
        precision,
        device,
        engine=engine,
        calibration=texts,
        query_precision=query_precision,
    )
    return {}


def work(passages: str) -> dict[str, Any]:
    """Encode the passages of a JSON file."""
    return {"vectors": LOADED["encoder"].encode_passages(json.loads(Path(passages).read_text()))}


def ask(queries: str) -> dict[str, Any]:
    """Encode the queries of a JSON file one after the other."""
    seconds, vectors = [], []
    for query in json.loads(Path(queries).read_text()):
        began = time.perf_counter()
        vectors.append(LOADED["encoder"].encode_queries([query]))
        seconds.append(time.perf_counter() - began)
    return {"seconds": float(np.median(seconds)), "vectors": np.concatenate(vectors)}


if __name__ == "__main__":
    compete({"load": load, "work": work, "ask": ask}, ["transformers", "torch", "openvino", "onnxruntime"])
