"""Claim: hone's server answers more requests a second than an encode-per-request server and than infinity, and sooner.

Does not know how any of them computes.
"""

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import machine
from benchmarks.alternation import Contestant, Entrant, started
from benchmarks.environments import ROOT
from benchmarks.load import Load, closed, post, steady
from benchmarks.options import Options, parse
from benchmarks.report import last_line, show
from benchmarks.texts import sample_passages, sample_queries
from retriever.encoder import model_path
from retriever.protocols import FloatArray

KEYS = ("vs_naive", "vs_infinity", "vs_infinity_bf16", "p99_vs_best_peer", "p99_during_rebuild")
CLIENTS = (1, 8, 32)
SECONDS, QUICK_SECONDS = 5.0, 2.0
PASSAGES, QUICK_PASSAGES = 6000, 1500
QUERIES = 1000
OURS, DEF, ASYNC = "hone", "FastAPI + ST, def", "FastAPI + ST, async"
INFINITY, INFINITY_BF16 = "infinity", "infinity, bf16"
SHARE_OF_CAPACITY = 0.7
"""Of the slowest contestant at 32 clients: the arrival rate at which waiting is compared."""
SEARCH_RATE = 40.0
"""Searches a second during a rebuild, and without."""


def main() -> None:
    """Measure and print."""
    options = parse("serve", "Requests answered per second against FastAPI + sentence-transformers and infinity.")
    host = machine.look()
    show(host.sentence)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        store = _store(Path(scratch), options)
        texts = sample_queries(options.data, QUERIES)
        with started(_entrants(store)) as contestants:
            for contestant in contestants:
                show(f"{contestant.entrant.name}: {contestant.versions}")
            cosine = float(_cosines(contestants, texts[:20]).min())
            show(f"least cosine of a vector to hone's: {cosine:.5f}")
            _measure(contestants, texts, options, {"cosine_min": round(cosine, 5), "machine": host.as_facts()})


def _measure(
    contestants: Sequence[Contestant], texts: Sequence[str], options: Options, more: Mapping[str, Any]
) -> None:
    seconds = QUICK_SECONDS if options.quick else SECONDS
    gc.collect()
    gc.freeze()  # or the generator's own garbage collection counts as a server's delay
    for contestant in contestants:  # warm up
        closed(_port(contestant), _requests(contestant, texts), 32, seconds)
    rounds = [_round(contestants, texts, seconds) for _ in range(options.rounds)]
    _print_rates(rounds)
    rate = SHARE_OF_CAPACITY * min(
        statistics.median(one[name, 32].rate for one in rounds) for name in _names(contestants)
    )
    waits = [
        {c.entrant.name: steady(_port(c), _requests(c, texts), 32, seconds, rate) for c in contestants}
        for _ in range(options.rounds)
    ]
    _print_waits(waits, rate)
    before, during = _beside_a_rebuild(contestants[0], texts, seconds)
    show(f"search at {SEARCH_RATE:.0f}/s: p99 {before:.1f} ms, during a rebuild {during:.1f} ms")
    p99 = {name: statistics.median(one[name].quantile(0.99) for one in waits) for name in _names(contestants)}
    figures = {
        "vs_naive": min(_ratio(rounds, DEF), _ratio(rounds, ASYNC)),
        "vs_infinity": _ratio(rounds, INFINITY),
        "vs_infinity_bf16": _ratio(rounds, INFINITY_BF16),
        "p99_vs_best_peer": p99[OURS] / min(value for name, value in p99.items() if name != OURS),
        "p99_during_rebuild": during / before,
    }
    last_line(KEYS, figures, {}, clients=32, failed=sum(load.failed for one in rounds for load in one.values()), **more)


def _store(scratch: Path, options: Options) -> Path:
    """Index a sample of the passages."""
    passages = sample_passages(options.data, QUICK_PASSAGES if options.quick else PASSAGES)
    (scratch / "data").mkdir()
    lines = [json.dumps({"_id": str(row), "text": text}) for row, text in enumerate(passages)]
    (scratch / "data" / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "app.cli", "index", "--model", "minilm", str(scratch / "data")]
    subprocess.run([*command, "--store", str(scratch / "store")], cwd=ROOT, check=True, capture_output=True)
    return scratch / "store"


def _entrants(store: Path) -> list[Entrant]:
    model, servers = model_path("minilm"), "sentence-transformers-server"

    def naive(name: str, form: str) -> Entrant:
        return Entrant(name, "benchmarks.contestants.naive_serve", servers, {"model": model, "form": form})

    def infinity(name: str, dtype: str) -> Entrant:
        return Entrant(name, "benchmarks.contestants.infinity_serve", "infinity", {"model": model, "dtype": dtype})

    return [
        Entrant(OURS, "benchmarks.contestants.hone_serve", settings={"store": str(store)}),
        naive(DEF, "def"),
        naive(ASYNC, "async"),
        infinity(INFINITY, "auto"),
        infinity(INFINITY_BF16, "bfloat16"),
    ]


def _names(contestants: Sequence[Contestant]) -> list[str]:
    return [contestant.entrant.name for contestant in contestants]


def _port(contestant: Contestant) -> int:
    assert contestant.loaded is not None
    port: int = contestant.loaded.facts["port"]
    return port


def _asked(contestant: Contestant, texts: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return path and body of a request for vectors of ``texts``."""
    name = contestant.entrant.name
    if name == OURS:  # the passage side: a query's vector would be kept for the next time
        return "/v1/encode", {"inputs": list(texts), "input_type": "passage"}
    if name in (DEF, ASYNC):
        return "/encode", {"inputs": list(texts)}
    return "/embeddings", {"input": list(texts), "model": "model"}


def _requests(contestant: Contestant, texts: Sequence[str]) -> list[bytes]:
    asked = [_asked(contestant, [text]) for text in texts]
    return [post(_port(contestant), path, json.dumps(body).encode()) for path, body in asked]


def _cosines(contestants: Sequence[Contestant], texts: Sequence[str]) -> FloatArray:
    vectors = []
    for contestant in contestants:
        path, body = _asked(contestant, texts)
        address = f"http://127.0.0.1:{_port(contestant)}{path}"
        request = urllib.request.Request(address, json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
        found = answer.get("embeddings") or [one["embedding"] for one in answer["data"]]
        rows = np.array(found, np.float32)
        vectors.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    cosines: FloatArray = np.concatenate([(vectors[0] * other).sum(axis=1) for other in vectors[1:]])
    return cosines


def _round(contestants: Sequence[Contestant], texts: Sequence[str], seconds: float) -> dict[tuple[str, int], Load]:
    return {
        (contestant.entrant.name, clients): closed(_port(contestant), _requests(contestant, texts), clients, seconds)
        for clients in CLIENTS
        for contestant in contestants
    }


def _ratio(rounds: Sequence[Mapping[tuple[str, int], Load]], peer: str) -> float:
    return statistics.median(one[OURS, 32].rate / one[peer, 32].rate for one in rounds)


def _print_rates(rounds: Sequence[Mapping[tuple[str, int], Load]]) -> None:
    table = Table(title=f"Requests/s, each of one text; medians of {len(rounds)} rounds", title_justify="left")
    table.add_column("server")
    for clients in CLIENTS:
        table.add_column(f"{clients} clients (p50 / p99 ms)", justify="right")
    for name in dict.fromkeys(name for name, _ in rounds[0]):
        cells = []
        for clients in CLIENTS:
            loads = [one[name, clients] for one in rounds]
            rate = statistics.median(load.rate for load in loads)
            p50, p99 = (statistics.median(load.quantile(share) for load in loads) for share in (0.5, 0.99))
            cells.append(f"{rate:,.0f} ({p50:.0f} / {p99:.0f})")
        table.add_row(name, *cells)
    show(table)


def _print_waits(waits: Sequence[Mapping[str, Load]], rate: float) -> None:
    table = Table(
        title=f"At {rate:.0f} requests/s, whoever is free; medians of {len(waits)} rounds", title_justify="left"
    )
    for heading in ("server", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="left" if heading == "server" else "right")
    for name in waits[0]:
        quantiles = [statistics.median(one[name].quantile(share) for one in waits) for share in (0.5, 0.99)]
        table.add_row(name, *(f"{value:.1f}" for value in quantiles))
    show(table)


def _json(port: int, method: str, path: str) -> dict[str, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    with urllib.request.urlopen(request) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def _beside_a_rebuild(contestant: Contestant, texts: Sequence[str], seconds: float) -> tuple[float, float]:
    """Return p99 in milliseconds of searches without and during a rebuild that encodes every passage again."""
    port, store = _port(contestant), Path(contestant.entrant.settings["store"])
    requests = [post(port, "/v1/search", json.dumps({"queries": [text]}).encode()) for text in texts]
    # Not asked before, so that no vector is kept: half of the texts each time.
    half = len(requests) // 2
    before = steady(port, requests[:half], 8, seconds, SEARCH_RATE)
    rmtree(store / "embeddings")
    (store / "embeddings").mkdir()
    job = _json(port, "POST", "/v1/index/rebuild")["id"]
    while _json(port, "GET", f"/v1/jobs/{job}")["done"] == 0:  # its process starts, then it encodes
        time.sleep(0.2)
    during = steady(port, requests[half:], 8, seconds, SEARCH_RATE)
    state = _json(port, "GET", f"/v1/jobs/{job}")["state"]
    if state != "running":
        raise RuntimeError(f"the rebuild is {state} already, so nothing was measured beside it; take more passages")
    _json(port, "POST", f"/v1/jobs/{job}/cancel")
    return before.quantile(0.99), during.quantile(0.99)


if __name__ == "__main__":
    main()
