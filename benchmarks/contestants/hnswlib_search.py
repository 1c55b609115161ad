"""hnswlib's graph. Does not know its peers."""

import time
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np

from benchmarks.contest import compete

LOADED: dict[str, Any] = {}


def load(vectors: list[str], index: str, m: int, ef_construction: int, threads: int) -> dict[str, Any]:
    """Open the index at path ``index``, or build it of the .npy files ``vectors`` and save it there."""
    first = np.load(vectors[0], mmap_mode="r")
    LOADED["index"] = hnswlib.Index(space="ip", dim=first.shape[1])
    if Path(index).exists():
        LOADED["index"].load_index(index)
        return {"bytes": Path(index).stat().st_size}
    rows = np.concatenate([np.load(path) for path in vectors])
    began = time.perf_counter()
    LOADED["index"].init_index(max_elements=len(rows), M=m, ef_construction=ef_construction)
    LOADED["index"].add_items(rows, num_threads=threads)
    seconds = time.perf_counter() - began
    LOADED["index"].save_index(index)
    return {"bytes": Path(index).stat().st_size, "build_seconds": seconds}


def search(queries: str, k: int, threads: int, ef: int) -> dict[str, Any]:
    """Search the k nearest of each query in a .npy file."""
    vectors = np.load(queries)
    LOADED["index"].set_ef(ef)
    began = time.perf_counter()
    rows, _ = LOADED["index"].knn_query(vectors, k=k, num_threads=threads)
    return {"seconds": time.perf_counter() - began, "rows": rows.astype(np.int32)}


if __name__ == "__main__":
    compete({"load": load, "search": search}, ["hnswlib", "numpy"])
