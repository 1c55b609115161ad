"""The servers that are compared, how each is asked, and loads on all of them in turn.

Does not know what is claimed of them, nor how any of them computes.
"""

import gc
import json
import math
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.alternation import WITHOUT_GPU, Contestant, Entrant
from benchmarks.environments import ROOT
from benchmarks.load import Load, closed, steady
from benchmarks.options import Options, options_of, parser_for
from benchmarks.report import show
from benchmarks.texts import sample_passages
from retriever.encoder import model_path

CLIENTS = (1, 8, 32)
OURS = "hone"
NAIVE = {
    "FastAPI + ST, def": ("sentence-transformers-server", {"form": "def", "backend": "torch"}),
    "FastAPI + ST, async": ("sentence-transformers-server", {"form": "async", "backend": "torch"}),
    # One request at a time: a model of OpenVINO refuses a second thread.
    "FastAPI + ST, OpenVINO": ("sentence-transformers-openvino", {"form": "async", "backend": "openvino"}),
}
"""Name: environment and settings of a server that encodes once a request."""
INFINITY, INFINITY_BF16 = "infinity", "infinity, bf16"
QUERIES_IN_INT8 = "onnxruntime"
LEAST_REQUESTS = 200
SHARE_OF_CAPACITY = 0.7
"""Of the slowest contestant at so many clients: the arrival rate at which waiting is compared."""

Loads = Mapping[tuple[str, int], Load]
"""One round: by name of the contestant and number of clients or connections."""
Requests = Callable[[Contestant], Iterator[bytes]]
"""Gives requests to a contestant's server, without end."""


def parse_with_engine(name: str, claim: str, *more: str) -> tuple[Options, str]:
    """Read the command line of a benchmark of servers: its options, and the engine of hone's, which may be ``more``."""
    parser = parser_for(name, claim)
    engines = ("auto", "torch", "openvino", *more)
    parser.add_argument("--engine", choices=engines, default="auto", help="of hone's server")
    given = parser.parse_args()
    engine: str = given.engine
    return options_of(given), engine


def indexed(scratch: Path, data: Path, passages: int, engine: str) -> Path:
    """Index a sample of the passages of ``data`` by ``engine``, which a server then computes by; return the store."""
    (scratch / "data").mkdir()
    lines = [json.dumps({"_id": str(row), "text": text}) for row, text in enumerate(sample_passages(data, passages))]
    (scratch / "data" / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    how = ["--query-precision", "int8"] if engine == QUERIES_IN_INT8 else ["--engine", engine]
    command = [sys.executable, "-m", "app.cli", "index", "--model", "minilm", *how, str(scratch / "data")]
    subprocess.run([*command, "--store", str(scratch / "store")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return scratch / "store"


def ours(store: Path) -> Entrant:
    """Return hone's server over ``store``."""
    variables = {**WITHOUT_GPU, "OMP_WAIT_POLICY": "PASSIVE"}  # the second as `hone serve` sets it
    return Entrant(OURS, "benchmarks.contestants.hone_serve", settings={"store": str(store)}, variables=variables)


def naive(passages: str = "") -> list[Entrant]:
    """Return those that encode once a request; with ``passages``, a folder, they search as well."""
    settings = {"model": model_path("minilm"), "passages": passages}
    return [
        Entrant(name, "benchmarks.contestants.naive_serve", environment, {**settings, **how})
        for name, (environment, how) in NAIVE.items()
    ]


def infinity() -> list[Entrant]:
    """Return infinity as it comes, and in bf16."""
    model = model_path("minilm")
    return [
        Entrant(name, "benchmarks.contestants.infinity_serve", "infinity", {"model": model, "dtype": dtype})
        for name, dtype in ((INFINITY, "auto"), (INFINITY_BF16, "bfloat16"))
    ]


def introduce(contestants: Sequence[Contestant]) -> None:
    """Print of each its versions, and what computes it where that is known."""
    for contestant in contestants:
        assert contestant.loaded is not None
        by = contestant.loaded.facts.get("computed_by", contestant.entrant.settings.get("backend", ""))
        show(f"{contestant.entrant.name}: {contestant.versions} {by}".rstrip())


def port_of(contestant: Contestant) -> int:
    """Return the port that a contestant serves."""
    assert contestant.loaded is not None
    port: int = contestant.loaded.facts["port"]
    return port


def ask(port: int, path: str, body: Any = None, method: str = "POST") -> dict[str, Any]:
    """Return the JSON answer to one request. Raises HTTPError for any status but success."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers, method=method)
    with urllib.request.urlopen(request) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def warm(contestants: Sequence[Contestant], requests: Requests, seconds: float) -> None:
    """Load each once, uncounted, and freeze what this process holds: its garbage would count as a server's delay."""
    gc.collect()
    gc.freeze()
    for contestant in contestants:
        closed(port_of(contestant), requests(contestant), max(CLIENTS), seconds)


def closed_rounds(contestants: Sequence[Contestant], requests: Requests, seconds: float, rounds: int) -> list[Loads]:
    """Load each in turn by clients that ask as fast as they are answered, ``seconds`` each time."""
    return [
        {
            (one.entrant.name, clients): closed(port_of(one), requests(one), clients, seconds)
            for clients in CLIENTS
            for one in contestants
        }
        for _ in range(rounds)
    ]


def shared_rates(rounds: Sequence[Loads]) -> dict[int, float]:
    """Return by number of clients the requests a second that every contestant can answer."""
    names = {name for name, _ in rounds[0]}
    return {
        clients: SHARE_OF_CAPACITY * min(statistics.median(one[name, clients].rate for one in rounds) for name in names)
        for clients in CLIENTS
    }


def open_rounds(
    contestants: Sequence[Contestant], requests: Requests, seconds: float, rounds: int, rates: Mapping[int, float]
) -> list[Loads]:
    """Load each in turn at a constant rate of arrival, ``rates`` by number of connections.

    A round lasts ``seconds``, or longer, so that all of them have LEAST_REQUESTS: a p99 of a few is their slowest.
    """
    each = math.ceil(LEAST_REQUESTS / rounds) + 0.5  # a load asks for whole requests alone
    least = {clients: max(seconds, each / rate) for clients, rate in rates.items()}
    return [
        {
            (one.entrant.name, clients): steady(port_of(one), requests(one), clients, least[clients], rate)
            for clients, rate in rates.items()
            for one in contestants
        }
        for _ in range(rounds)
    ]


def faster(rounds: Sequence[Loads], *peers: str, clients: int = max(CLIENTS)) -> float:
    """Return how many times as many requests hone answers a second as the best of ``peers``.

    Of each peer the median of the rounds' ratios.
    """
    return min(statistics.median(one[OURS, clients].rate / one[peer, clients].rate for one in rounds) for peer in peers)


def p99_share(rounds: Sequence[Loads], clients: int) -> float:
    """Return hone's p99 as a share of the peer's against which it does worst, each of all rounds' requests."""
    peers = {name for name, _ in rounds[0]} - {OURS}
    return max(_pooled(rounds, OURS, clients) / _pooled(rounds, peer, clients) for peer in peers)


def _pooled(rounds: Sequence[Loads], name: str, clients: int) -> float:
    return Load(0.0, [time for one in rounds for time in one[name, clients].milliseconds]).quantile(0.99)


def refuse_failures(rounds: Sequence[Loads]) -> None:
    """Raise RuntimeError if a request failed: a refusal is quick, so that rates and waits would tell nothing."""
    failed = {place: sum(one[place].failed for one in rounds) for place in rounds[0]}
    said = [f"{count} of {name} at {clients} clients" for (name, clients), count in failed.items() if count]
    if said:
        raise RuntimeError(f"requests failed: {', '.join(said)}")


def print_loads(title: str, rounds: Sequence[Loads]) -> dict[str, dict[int, list[float]]]:
    """Print a row a contestant; return by name and clients the rate in 1/s, p50 and p99 in ms.

    Medians of the rounds; p99 is that of all their requests.
    """
    facts: dict[str, dict[int, list[float]]] = {}
    for name, clients in rounds[0]:
        loads = [one[name, clients] for one in rounds]
        rate, half = statistics.median(one.rate for one in loads), statistics.median(one.quantile(0.5) for one in loads)
        facts.setdefault(name, {})[clients] = [round(f, 1) for f in (rate, half, _pooled(rounds, name, clients))]
    table = Table(
        title=f"{title}: requests/s (p50 / p99 ms); medians of {len(rounds)} rounds, p99 of all", title_justify="left"
    )
    table.add_column("server")
    for clients in CLIENTS:
        table.add_column(f"{clients} client{'s' if clients > 1 else ''}", justify="right")
    for name, measured in facts.items():
        table.add_row(name, *("{:,.0f} ({:.1f} / {:.1f})".format(*measured[clients]) for clients in CLIENTS))
    show(table)
    return facts
