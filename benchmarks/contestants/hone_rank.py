"""hone's ranker, scoring pairs. Does not know its peers."""

import json
from pathlib import Path
from typing import Any

from benchmarks.contest import compete
from retriever.ranker import RankerConfig, load_ranker
from retriever.scoring import TorchRanker

LOADED: dict[str, TorchRanker] = {}


def load(folder: str, precision: str) -> dict[str, Any]:
    """Load the ranker."""
    model = load_ranker(RankerConfig(folder, activation="identity"))
    LOADED["ranker"] = TorchRanker(model, precision, "cpu")
    return {}


def work(pairs: str) -> dict[str, Any]:
    """Score the pairs of a JSON file."""
    queries, passages = zip(*json.loads(Path(pairs).read_text()), strict=True)
    return {"scores": LOADED["ranker"].score(queries, passages)}


if __name__ == "__main__":
    compete({"load": load, "work": work}, ["transformers", "torch"])
