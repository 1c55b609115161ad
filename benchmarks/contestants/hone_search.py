"""hone's index: ``auto`` for a target recall, tuned on queries of its own, and mapped from disk as it is served.

Does not know its peers.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.contest import built_once, compete, peak_rss, slices
from indexer.factory import IndexConfig, make_index
from indexer.faiss_index import read_index, search_index, write_index
from indexer.shards import Vectors
from retriever.protocols import silent
from retriever.store import code_version

LOADED: dict[str, Any] = {}


def load(
    vectors: list[str], index: str, tuning: str, settings: dict[str, Any], threads: int, run: str
) -> dict[str, Any]:
    """Open the index at path ``index``, first built there of the .npy files ``vectors`` unless an earlier run did.

    The build is all that a generation's would be, tuning for serving and for mining at depth 200 included.
    """

    def build() -> dict[str, Any]:
        faiss.omp_set_num_threads(threads)
        began = time.perf_counter()
        rows = Vectors([Path(path) for path in vectors])
        built, choice = make_index(rows, np.load(tuning), IndexConfig(**settings), None, silent, print, 200)
        seconds = time.perf_counter() - began
        write_index(built, Path(index))
        return {"choice": asdict(choice), "build_seconds": seconds, "build_rss": peak_rss()}

    facts = built_once(index, f"{code_version()} {faiss.__version__} {settings}", run, build)
    LOADED["index"] = read_index(Path(index))
    return facts


def search(queries: str, k: int, threads: int, at_once: int, **parameters: float) -> dict[str, Any]:
    """Search the k nearest of each query in a .npy file, ``at_once`` a call, 0 for all."""
    vectors = np.load(queries)
    faiss.omp_set_num_threads(threads)
    began = time.perf_counter()
    found = [search_index(LOADED["index"], vectors[part], k, parameters)[0] for part in slices(len(vectors), at_once)]
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rows": np.concatenate(found).astype(np.int32)}


if __name__ == "__main__":
    compete({"load": load, "search": search}, ["faiss-cpu", "numpy"])
