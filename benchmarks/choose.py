"""Claim: mining and planning batches cost less than a tenth of the encoding that they follow.

Does not encode: vectors are random, which is the hardest case for an index and for communities alike.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import last_line, show
from indexer.searcher import exact_searcher
from miner.communities import B3, b3_batches
from miner.mining import MiningConfig, MiningTask, mine
from miner.sources import OpenGeneration
from retriever.data import Corpus, QuerySet
from retriever.ingest import ingest_corpus
from retriever.protocols import FloatArray
from retriever.store import Store

DIMENSIONS = 384
DEPTH = 200
KEYS = ("mine_seconds", "plan_seconds", "share_of_encoding", "edges_inside", "peak_mb")


def main() -> None:
    """Mine and plan over --count queries and as many passages, and compare with encoding them at --rate texts/s."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--topics", type=int, default=0, help="0: nothing is nearer than chance has it")
    parser.add_argument("--share", type=int, default=1, help="queries that have the same positive")
    parser.add_argument("--rate", type=float, default=400.0)
    parser.add_argument("--sources", nargs="+", default=["ann"])
    options = parser.parse_args()
    positives = np.arange(options.count) // options.share * options.share
    passages, queries = planted(positives, options.topics)
    with tempfile.TemporaryDirectory() as folder:
        corpus, asked = _data(Path(folder), positives)
        task = MiningTask(corpus, asked, MiningConfig(tuple(options.sources), DEPTH, relative_margin=0.05), 1)
        generation = OpenGeneration(
            1,
            lambda texts: queries[[int(text.split()[-1]) for text in texts]],
            exact_searcher(DIMENSIONS, [passages]),
            lambda rows: passages[rows],
        )
        (Path(folder) / "set").mkdir()
        started = time.perf_counter()
        found = mine(Path(folder) / "set", generation, task)
        mined = time.perf_counter()
        _, inside = b3_batches(B3(30, 100, 32, 64), asked.texts, generation.encode, generation.gather, found, (1, 1))
        planned = time.perf_counter()
    encoding = 2 * options.count / options.rate
    figures = {
        "mine_seconds": mined - started,
        "plan_seconds": planned - mined,
        "share_of_encoding": (planned - started) / encoding,
        "edges_inside": inside,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    show(f"{options.count} queries and passages; encoding at {options.rate:.0f} texts/s takes {encoding:.0f} s")
    for key in KEYS:
        show(f"  {key:18} {figures[key]:.3g}")
    last_line(
        KEYS, figures, {}, count=options.count, topics=options.topics, share=options.share, sources=options.sources
    )


def planted(positives: NDArray[np.int64], topics: int) -> tuple[FloatArray, FloatArray]:
    """Return unit vectors float32 [count, 384] of as many passages as ``positives``, and of a query near each one."""
    generator, count = np.random.default_rng(0), len(positives)
    passages = generator.standard_normal((count, DIMENSIONS), dtype=np.float32)
    if topics:
        passages += 0.7 * generator.standard_normal((topics, DIMENSIONS), dtype=np.float32)[np.arange(count) % topics]
    queries = passages[positives] + 0.5 * generator.standard_normal((count, DIMENSIONS), dtype=np.float32)
    return _unit(passages), _unit(queries)


def _unit(vectors: FloatArray) -> FloatArray:
    unit: FloatArray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _data(folder: Path, positives: NDArray[np.int64]) -> tuple[Corpus, QuerySet]:
    """Write as many passages as queries; ``positives`` int64 [count] are the rows of the queries' own."""
    count = len(positives)
    lines: Sequence[str] = [f'{{"_id": "p{row}", "title": "", "text": "passage {row}"}}\n' for row in range(count)]
    (folder / "corpus.jsonl").write_text("".join(lines))
    corpus = Corpus(ingest_corpus(Store(folder / "store", create=True), folder))
    texts = [f"query {row}" for row in range(count)]
    return corpus, QuerySet("train", texts, texts, [{row: 1} for row in positives.tolist()])


if __name__ == "__main__":
    main()
