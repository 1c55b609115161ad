"""usearch's graph over bfloat16, its default. Does not know its peers."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from usearch.index import Index

from benchmarks.contest import compete

LOADED: dict[str, Any] = {}


def load(vectors: list[str], index: str, dtype: str, threads: int) -> dict[str, Any]:
    """Open the index at path ``index``, or build it of the .npy files ``vectors`` and save it there."""
    first = np.load(vectors[0], mmap_mode="r")
    LOADED["index"] = Index(ndim=first.shape[1], metric="ip", dtype=dtype)
    if Path(index).exists():
        LOADED["index"].load(index)
        return {"bytes": Path(index).stat().st_size}
    rows = np.concatenate([np.load(path) for path in vectors])
    began = time.perf_counter()
    LOADED["index"].add(np.arange(len(rows)), rows, threads=threads)
    seconds = time.perf_counter() - began
    LOADED["index"].save(index)
    return {"bytes": Path(index).stat().st_size, "build_seconds": seconds}


def search(queries: str, k: int, threads: int, expansion: int) -> dict[str, Any]:
    """Search the k nearest of each query in a .npy file."""
    vectors = np.load(queries)
    LOADED["index"].expansion_search = expansion
    began = time.perf_counter()
    found = LOADED["index"].search(vectors, k, threads=threads)
    return {"seconds": time.perf_counter() - began, "rows": np.asarray(found.keys).astype(np.int32)}


if __name__ == "__main__":
    compete({"load": load, "search": search}, ["usearch", "numpy"])
