"""hnswlib's graph. Does not know its peers."""

import time
from importlib.metadata import version
from typing import Any

import hnswlib
import numpy as np

from benchmarks.contest import built_once, compete, slices

LOADED: dict[str, Any] = {}


def load(vectors: list[str], index: str, m: int, ef_construction: int, threads: int, run: str) -> dict[str, Any]:
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

    facts = built_once(index, f"{version('hnswlib')} {m} {ef_construction}", run, build)
    LOADED["index"] = hnswlib.Index(space="ip", dim=np.load(vectors[0], mmap_mode="r").shape[1])
    LOADED["index"].load_index(index)
    return facts


def search(queries: str, k: int, threads: int, at_once: int, ef: int) -> dict[str, Any]:
    """Search the k nearest of each query in a .npy file, ``at_once`` a call, 0 for all."""
    vectors = np.load(queries)
    LOADED["index"].set_ef(ef)
    began = time.perf_counter()
    found = [
        LOADED["index"].knn_query(vectors[part], k=k, num_threads=threads)[0] for part in slices(len(vectors), at_once)
    ]
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rows": np.concatenate(found).astype(np.int32)}


if __name__ == "__main__":
    compete({"load": load, "search": search}, ["hnswlib", "numpy"])
