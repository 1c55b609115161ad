"""hnswlib's graph. Does not know its peers."""

import time
from importlib.metadata import version
from typing import Any

import hnswlib
import numpy as np

from benchmarks.contest import built_once, compete

LOADED: dict[str, Any] = {}


def load(vectors: list[str], index: str, m: int, ef_construction: int, threads: int) -> dict[str, Any]:
    """Open the index at path ``index``, first built there of the .npy files ``vectors`` unless an earlier run did."""

    def build() -> dict[str, Any]:
        rows = np.concatenate([np.load(path) for path in vectors])
        began = time.perf_counter()
        graph = hnswlib.Index(space="ip", dim=rows.shape[1])
        graph.init_index(max_elements=len(rows), M=m, ef_construction=ef_construction)
        graph.add_items(rows, num_threads=threads)
        seconds = time.perf_counter() - began
        graph.save_index(index)
        return {"build_seconds": seconds}

    facts = built_once(index, f"{version('hnswlib')} {m} {ef_construction}", build)
    LOADED["index"] = hnswlib.Index(space="ip", dim=np.load(vectors[0], mmap_mode="r").shape[1])
    LOADED["index"].load_index(index)
    return facts


def search(queries: str, k: int, threads: int, ef: int) -> dict[str, Any]:
    """Search the k nearest of each query in a .npy file."""
    vectors = np.load(queries)
    LOADED["index"].set_ef(ef)
    began = time.perf_counter()
    rows, _ = LOADED["index"].knn_query(vectors, k=k, num_threads=threads)
    return {"seconds": time.perf_counter() - began, "rows": rows.astype(np.int32)}


if __name__ == "__main__":
    compete({"load": load, "search": search}, ["hnswlib", "numpy"])
