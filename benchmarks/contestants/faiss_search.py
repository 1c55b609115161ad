"""FAISS used bare: one factory string, its parameters set on the index. Does not know its peers."""

import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.contest import compete

LOADED: dict[str, Any] = {}


def load(vectors: list[str], index: str, factory: str, threads: int) -> dict[str, Any]:
    """Open the index at path ``index``, or build it of the .npy files ``vectors`` and save it there."""
    faiss.omp_set_num_threads(threads)
    if Path(index).exists():
        LOADED["index"] = faiss.read_index(index)
        return {"bytes": Path(index).stat().st_size}
    rows = np.concatenate([np.load(path) for path in vectors])
    began = time.perf_counter()
    LOADED["index"] = faiss.index_factory(rows.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    LOADED["index"].train(rows)
    LOADED["index"].add(rows)
    seconds = time.perf_counter() - began
    faiss.write_index(LOADED["index"], index)
    return {"bytes": Path(index).stat().st_size, "build_seconds": seconds}


def search(queries: str, k: int, threads: int, **parameters: float) -> dict[str, Any]:
    """Search the k nearest of each query in a .npy file."""
    vectors = np.load(queries)
    faiss.omp_set_num_threads(threads)
    for name, value in parameters.items():
        faiss.ParameterSpace().set_index_parameter(LOADED["index"], name, value)
    began = time.perf_counter()
    _, rows = LOADED["index"].search(vectors, k)
    return {"seconds": time.perf_counter() - began, "rows": rows.astype(np.int32)}


if __name__ == "__main__":
    compete({"load": load, "search": search}, ["faiss-cpu", "numpy"])
