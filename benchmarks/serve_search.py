"""Claim: hone's server searches more often a second than one that encodes and compares once a request, and sooner;
and rebuilding or mining on the same machine leaves a search's p99 as it is.

Does not know how any of them searches.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np

from app.jobs import ACTIVE
from app.mining_job import MINE
from benchmarks import machine
from benchmarks.alternation import Contestant, started
from benchmarks.load import Load, closed, post, steady
from benchmarks.options import Options
from benchmarks.report import last_line, show
from benchmarks.servers import (
    NAIVE,
    OURS,
    QUERIES_IN_INT8,
    ask,
    closed_rounds,
    faster,
    indexed,
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
from indexer.shards import open_vectors
from retriever.artifacts import SERVED
from retriever.data import Corpus
from retriever.store import Store

KEYS = (
    "vs_naive",
    "vs_infinity",
    "p99_vs_best_peer",
    "p99_vs_best_peer_8_clients",
    "p99_vs_best_peer_1_client",
    "p99_during_rebuild",
    "p99_during_mining_job",
    "p99_during_mining",
    "overlap",
)
REASONS = {"vs_infinity": "it encodes and does not search"}
SECONDS, QUICK_SECONDS = 2.5, 1.0
BESIDE_SECONDS, QUICK_BESIDE_SECONDS, BESIDE_ROUNDS = 5.0, 3.0, 3
PASSAGES, QUICK_PASSAGES = 6000, 3000
QUERIES = 1000
TOP_K = 10
SEARCH_RATE, SEARCH_CONNECTIONS = 40.0, 8
"""Searches a second beside other work, and without, and over how many connections."""
MINED_QUERIES = 50
"""Queries of one request to mine."""
JOB_QUERIES = 4000
"""Queries of a mining job for each second of searches beside it: more than it gets through."""
JOB_SECONDS = 300.0
"""Within so long a job begins, and ends once it is cancelled: idle cores alone are its."""

Work = Callable[[], AbstractContextManager[None]]


def main() -> None:
    """Measure and print."""
    claim = "Searches answered per second against FastAPI + sentence-transformers."
    options, engine = parse_with_engine("serve_search", claim, QUERIES_IN_INT8)
    host = machine.look()
    show(host.sentence)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        store = indexed(Path(scratch), options.data, QUICK_PASSAGES if options.quick else PASSAGES, engine)
        texts = sample_queries(options.data, QUERIES)
        with started([ours(store), *naive(_handed_over(store, Path(scratch)))]) as contestants:
            introduce(contestants)
            overlap = _overlap(contestants, texts[:100])
            show(f"hits that both have, of {TOP_K}: {overlap:.1%}")
            _measure(contestants, texts, options, overlap, host.as_facts())


def _measure(
    contestants: Sequence[Contestant], texts: Sequence[str], options: Options, overlap: float, host: Mapping[str, Any]
) -> None:
    searches = {one.entrant.name: _searches(one, texts) for one in contestants}

    def requests(contestant: Contestant) -> Iterator[bytes]:
        return searches[contestant.entrant.name]

    seconds = QUICK_SECONDS if options.quick else SECONDS
    warm(contestants, requests, seconds)
    loops = closed_rounds(contestants, requests, seconds, options.rounds)
    of_loops = print_loads("Searching for one text, as fast as answered", loops)
    waits = open_rounds(contestants, requests, seconds, options.rounds, shared_rates(loops))
    of_waits = print_loads("Searching for one text, at a constant rate", waits)
    refuse_failures([*loops, *waits])
    figures = {
        "vs_naive": faster(loops, *NAIVE),
        "vs_infinity": None,
        "p99_vs_best_peer": p99_share(waits, 32),
        "p99_vs_best_peer_8_clients": p99_share(waits, 8),
        "p99_vs_best_peer_1_client": p99_share(waits, 1),
        **_beside(contestants[0], searches[OURS], texts, options),
        "overlap": overlap,
    }
    last_line(KEYS, figures, REASONS, closed=of_loops, steady=of_waits, machine=host)


def _fresh(texts: Sequence[str]) -> Iterator[str]:
    """Yield ``texts`` again and again, from the second time on with a number: hone keeps what it has encoded."""
    yield from texts
    for turn in count(2):
        yield from (f"{text} {turn}" for text in texts)


def _path(contestant: Contestant) -> str:
    return "/v1/search" if contestant.entrant.name == OURS else "/search"


def _searches(contestant: Contestant, texts: Sequence[str]) -> Iterator[bytes]:
    port, path = port_of(contestant), _path(contestant)
    for text in _fresh(texts):
        yield post(port, path, json.dumps({"queries": [text], "top_k": TOP_K}).encode())


def _handed_over(store: Path, scratch: Path) -> str:
    """Write the served vectors and their passages' ids for the peers; return the folder."""
    opened = Store(store)
    number = opened.generations.pointed(SERVED)
    assert number is not None
    generation = opened.generations.at(number)
    rows = np.arange(generation.facts["rows"], dtype=np.int32)
    folder = scratch / "passages"
    folder.mkdir()
    np.save(folder / "vectors.npy", open_vectors(generation.path / "vectors").gather(rows))
    ids = Corpus(opened.corpora.at(generation.parents["corpus"])).ids(rows)
    (folder / "ids.json").write_text(json.dumps(ids))
    return str(folder)


def _overlap(contestants: Sequence[Contestant], texts: Sequence[str]) -> float:
    """Return the share of hone's hits that a peer has as well: the mean over ``texts``, the least of the peers'."""
    # With a word more each, so that none of these is known when it is searched for under load.
    body = {"queries": [f"{text} please" for text in texts], "top_k": TOP_K}
    found = [
        [{hit["id"] for hit in hits} for hits in ask(port_of(one), _path(one), body)["results"]] for one in contestants
    ]
    shares = [[len(ours & theirs) / TOP_K for ours, theirs in zip(found[0], peer, strict=True)] for peer in found[1:]]
    return min(map(statistics.fmean, shares))


def _beside(
    contestant: Contestant, searches: Iterator[bytes], texts: Sequence[str], options: Options
) -> dict[str, float]:
    """Return by key the p99 of searches beside some work as a share of that without, before it."""
    seconds = QUICK_BESIDE_SECONDS if options.quick else BESIDE_SECONDS
    port, store = port_of(contestant), Path(contestant.entrant.settings["store"])
    works: dict[str, Work] = {
        "rebuild": partial(_rebuilding, port, store),
        "mining_job": partial(_job, port, "/v1/mine", _job_of(texts, int(JOB_QUERIES * seconds))),
        "mining": partial(_mining, port, _mined(port, texts), seconds),
    }
    return {f"p99_during_{name}": _share(name, port, searches, seconds, work) for name, work in works.items()}


def _share(name: str, port: int, searches: Iterator[bytes], seconds: float, work: Work) -> float:
    rounds = []
    for _ in range(BESIDE_ROUNDS):
        before = steady(port, searches, SEARCH_CONNECTIONS, seconds, SEARCH_RATE)
        with work():
            during = steady(port, searches, SEARCH_CONNECTIONS, seconds, SEARCH_RATE)
        if before.failed or during.failed:
            raise RuntimeError(f"{before.failed} searches failed before {name} and {during.failed} during it")
        rounds.append((before, during))
    told = [_median_of([round_[place] for round_ in rounds]) for place in (0, 1)]
    show(f"searches at {SEARCH_RATE:.0f}/s, p50 / p99 ms: {told[0]}, during {name.replace('_', ' ')} {told[1]}")
    return statistics.median(during.quantile(0.99) / before.quantile(0.99) for before, during in rounds)


def _median_of(loads: Sequence[Load]) -> str:
    p50, p99 = (statistics.median(load.quantile(share) for load in loads) for share in (0.5, 0.99))
    return f"{p50:.1f} / {p99:.1f}"


@contextmanager
def _rebuilding(port: int, store: Path) -> Iterator[None]:
    """Let a job encode every passage again meanwhile."""
    rmtree(store / "embeddings")
    (store / "embeddings").mkdir()
    with _job(port, "/v1/index/rebuild", None):
        yield


@contextmanager
def _job(port: int, path: str, body: Any) -> Iterator[None]:
    """Start a job, be inside once it works, cancel it. Raises RuntimeError if it ended before that."""
    number = ask(port, path, body)["id"]
    # A mining job tells of its first 256 queries only once they are done; a rebuild of each batch.
    _until(port, number, lambda job: job["done"] > 0 or job["phase"] == MINE or job["state"] not in ACTIVE)
    yield
    job = ask(port, f"/v1/jobs/{number}", method="GET")
    if job["state"] != "running":
        raise RuntimeError(f"job {path} is {job['state']} already, so nothing was measured beside it: {job['error']}")
    show(f"{path}: {job['phase']} {job['done']} of {job['total']}")
    ask(port, f"/v1/jobs/{number}/cancel")
    _until(port, number, lambda job: job["state"] not in ACTIVE)


def _until(port: int, number: str, so: Callable[[Mapping[str, Any]], bool]) -> None:
    end = time.monotonic() + JOB_SECONDS
    while not so(ask(port, f"/v1/jobs/{number}", method="GET")):
        if time.monotonic() > end:
            raise RuntimeError(f"job {number} got no further within {JOB_SECONDS:.0f} s")
        time.sleep(0.2)


def _queries(texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": str(place), "text": text, "positives": []} for place, text in enumerate(texts)]


def _job_of(texts: Sequence[str], queries: int) -> dict[str, Any]:
    # Its process has a memory of its own: it may ask what was searched for.
    return {"queries": _queries([*islice(_fresh(texts), queries)]), "job": "hone"}


def _mined(port: int, texts: Sequence[str]) -> Iterator[bytes]:
    fresh = _fresh([f"to mine: {text}" for text in texts])  # no search asks these
    while True:
        yield post(port, "/v1/mine", json.dumps({"queries": _queries([*islice(fresh, MINED_QUERIES)])}).encode())


@contextmanager
def _mining(port: int, requests: Iterator[bytes], seconds: float) -> Iterator[None]:
    """Let one client ask the same server to mine meanwhile, one request after the other."""
    with ThreadPoolExecutor(1) as pool:
        mined = pool.submit(closed, port, requests, 1, seconds)
        yield
        load = mined.result()
    if load.failed:
        raise RuntimeError(f"{load.failed} of {len(load.milliseconds)} requests to mine failed")
    show(f"/v1/mine: {MINED_QUERIES * load.rate:,.0f} queries/s")


if __name__ == "__main__":
    main()
