"""usearch's graph over bfloat16, its default. Does not know its peers."""

import time
from importlib.metadata import version
from typing import Any

import numpy as np
from usearch.index import Index

from benchmarks.contest import built_once, compete, slices

LOADED: dict[str, Any] = {}


def load(vectors: list[str], index: str, dtype: str, threads: int, run: str) -> dict[str, Any]:
    """Open the index at path ``index``, first built there of the .npy files ``vectors`` unless an earlier run did."""

    def build() -> dict[str, Any]:
        rows = np.concatenate([np.load(path) for path in vectors])
        began = time.perf_counter()
        graph = Index(ndim=rows.shape[1], metric="ip", dtype=dtype)
        graph.add(np.arange(len(rows)), rows, threads=threads)
        seconds = time.perf_counter() - began
        graph.save(index)
        return {"build_seconds": seconds}

    facts = built_once(index, f"{version('usearch')} {dtype}", run, build)
    LOADED["index"] = Index.restore(index)
    return facts


def search(queries: str, k: int, threads: int, at_once: int, expansion: int) -> dict[str, Any]:
    """Search the k nearest of each query in a .npy file, ``at_once`` a call, 0 for all."""
    vectors = np.load(queries)
    LOADED["index"].expansion_search = expansion
    began = time.perf_counter()
    found = [
        np.atleast_2d(LOADED["index"].search(vectors[part], k, threads=threads).keys)  # of one query it gives a line
        for part in slices(len(vectors), at_once)
    ]
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rows": np.concatenate(found).astype(np.int32)}


if __name__ == "__main__":
    compete({"load": load, "search": search}, ["usearch", "numpy"])
