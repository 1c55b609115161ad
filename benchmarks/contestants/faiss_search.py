"""FAISS used bare: one factory string, its parameters set on the index. Does not know its peers."""

import time
from typing import Any

import faiss
import numpy as np

from benchmarks.contest import built_once, compete, slices

LOADED: dict[str, Any] = {}


def load(vectors: list[str], index: str, factory: str, threads: int, run: str) -> dict[str, Any]:
    """Open the index at path ``index``, first built there of the .npy files ``vectors`` unless an earlier run did."""

    def build() -> dict[str, Any]:
        faiss.omp_set_num_threads(threads)
        rows = np.concatenate([np.load(path) for path in vectors])
        began = time.perf_counter()
        built = faiss.index_factory(rows.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        built.train(rows)
        built.add(rows)
        seconds = time.perf_counter() - began
        faiss.write_index(built, index)
        return {"build_seconds": seconds}

    facts = built_once(index, f"{faiss.__version__} {factory}", run, build)
    LOADED["index"] = faiss.read_index(index)
    return facts


def search(queries: str, k: int, threads: int, at_once: int, **parameters: float) -> dict[str, Any]:
    """Search the k nearest of each query in a .npy file, ``at_once`` a call, 0 for all."""
    vectors = np.load(queries)
    faiss.omp_set_num_threads(threads)
    for name, value in parameters.items():
        faiss.ParameterSpace().set_index_parameter(LOADED["index"], name, value)
    began = time.perf_counter()
    found = [LOADED["index"].search(vectors[part], k)[1] for part in slices(len(vectors), at_once)]
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rows": np.concatenate(found).astype(np.int32)}


if __name__ == "__main__":
    compete({"load": load, "search": search}, ["faiss-cpu", "numpy"])
