"""Claim: hone's server answers more requests a second than an encode-per-request server and than infinity, and sooner.

Does not know how any of them computes.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.alternation import Contestant, started
from benchmarks.load import post
from benchmarks.options import Options
from benchmarks.report import last_line, show
from benchmarks.servers import (
    INFINITY,
    INFINITY_BF16,
    NAIVE,
    OURS,
    ask,
    closed_rounds,
    faster,
    indexed,
    infinity,
    introduce,
    naive,
    open_rounds,
    ours,
    p99_share,
    parse_with_engine,
    port_of,
    print_loads,
    refuse_failures,
    shared_rates,
    warm,
)
from benchmarks.texts import sample_queries
from retriever.protocols import FloatArray

KEYS = (
    "vs_naive",
    "vs_infinity",
    "vs_infinity_bf16",
    "p99_vs_best_peer",
    "p99_vs_best_peer_8_clients",
    "p99_vs_best_peer_1_client",
    "cosine_min",
)
SECONDS, QUICK_SECONDS = 2.5, 1.0
PASSAGES = 500
"""Nobody searches them here: benchmarks.serve_search does."""
QUERIES = 1000


def main() -> None:
    """Measure and print."""
    claim = "Requests answered per second against FastAPI + sentence-transformers and infinity."
    options, engine = parse_with_engine("serve", claim)
    host = machine.look()
    show(host.sentence)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        store = indexed(Path(scratch), options.data, PASSAGES, engine)
        texts = sample_queries(options.data, QUERIES)
        with started([ours(store), *naive(), *infinity()]) as contestants:
            introduce(contestants)
            cosine = float(_cosines(contestants, texts[:20]).min())
            show(f"least cosine of a vector to hone's: {cosine:.5f}")
            _measure(contestants, texts, options, cosine, host.as_facts())


def _measure(
    contestants: Sequence[Contestant], texts: Sequence[str], options: Options, cosine: float, host: Mapping[str, Any]
) -> None:
    seconds = QUICK_SECONDS if options.quick else SECONDS

    def requests(contestant: Contestant) -> Iterator[bytes]:
        asked = [_asked(contestant, [text]) for text in texts]
        return cycle([post(port_of(contestant), path, json.dumps(body).encode()) for path, body in asked])

    warm(contestants, requests, seconds)
    loops = closed_rounds(contestants, requests, seconds, options.rounds)
    of_loops = print_loads("Encoding one text, as fast as answered", loops)
    waits = open_rounds(contestants, requests, seconds, options.rounds, shared_rates(loops))
    of_waits = print_loads("Encoding one text, at a constant rate", waits)
    refuse_failures([*loops, *waits])
    figures = {
        "vs_naive": faster(loops, *NAIVE),
        "vs_infinity": faster(loops, INFINITY),
        "vs_infinity_bf16": faster(loops, INFINITY_BF16),
        "p99_vs_best_peer": p99_share(waits, 32),
        "p99_vs_best_peer_8_clients": p99_share(waits, 8),
        "p99_vs_best_peer_1_client": p99_share(waits, 1),
        "cosine_min": cosine,
    }
    last_line(KEYS, figures, {}, closed=of_loops, steady=of_waits, machine=host)


def _asked(contestant: Contestant, texts: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return path and body of a request for vectors of ``texts``."""
    name = contestant.entrant.name
    if name == OURS:  # the passage side: a query's vector would be kept for the next time
        return "/v1/encode", {"inputs": list(texts), "input_type": "passage"}
    if name in NAIVE:
        return "/encode", {"inputs": list(texts)}
    return "/embeddings", {"input": list(texts), "model": "model"}


def _cosines(contestants: Sequence[Contestant], texts: Sequence[str]) -> FloatArray:
    vectors = []
    for contestant in contestants:
        answer = ask(port_of(contestant), *_asked(contestant, texts))
        found = answer.get("embeddings") or [one["embedding"] for one in answer["data"]]
        rows = np.array(found, np.float32)
        vectors.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    cosines: FloatArray = np.concatenate([(vectors[0] * other).sum(axis=1) for other in vectors[1:]])
    return cosines


if __name__ == "__main__":
    main()
