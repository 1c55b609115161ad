"""sentence-transformers' mine_hard_negatives over the same passages and pairs. Does not know hone."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from benchmarks.contest import compete

LOADED: dict[str, Any] = {}


def load(
    model: str, texts: str, backend: str, settings: dict[str, str], cache: str | None, depth: int, negatives: int
) -> dict[str, Any]:
    """Open the model; ``texts`` is a JSON file of passages by id and of pairs, ``cache`` a folder for embeddings."""
    given = json.loads(Path(texts).read_text())
    LOADED["model"] = SentenceTransformer(model, device="cpu", backend=backend, model_kwargs=settings)  # type: ignore[arg-type]  # a literal, but from a JSON line
    LOADED["passages"], LOADED["pairs"] = given["passages"], given["pairs"]
    LOADED["ids"] = {text: name for name, text in given["passages"].items()}
    LOADED["options"] = {"range_max": depth, "num_negatives": negatives, "cache_folder": cache}
    return {}


def work() -> dict[str, Any]:
    """Mine."""
    passages, pairs = LOADED["passages"], LOADED["pairs"]
    queries = [pair["text"] for pair in pairs]
    positives = [passages[pair["positive"]] for pair in pairs]
    mined = mine_hard_negatives(
        Dataset.from_dict({"query": queries, "positive": positives}),
        LOADED["model"],
        corpus=list(passages.values()),
        output_format="n-tuple",
        verbose=False,
        **LOADED["options"],
    )
    names = {pair["text"]: pair["query"] for pair in pairs}
    columns = [name for name in mined.column_names if name.startswith("negative")]
    return {"negatives": {names[row["query"]]: [LOADED["ids"][row[name]] for name in columns] for row in mined}}


if __name__ == "__main__":
    compete({"load": load, "work": work, "again": work}, ["sentence-transformers", "transformers", "torch"])
