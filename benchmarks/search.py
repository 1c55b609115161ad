"""Claim: hone's index answers more queries a second than hnswlib at the same recall, is smaller and sooner built.

Over vectors of real sentences and questions; does not know how any contestant searches.
"""

import statistics
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import machine
from benchmarks.alternation import THREADS, Contestant, Entrant, started
from benchmarks.environments import OURS
from benchmarks.fronts import Measured, front, speed_at
from benchmarks.options import options_of, parser_for
from benchmarks.report import last_line, show
from benchmarks.vectors import open_encoder, passage_vectors, perturbed, query_vectors, questions, sentences
from indexer.exact import exact_search
from indexer.quality import recall_at
from indexer.shards import Vectors
from retriever.protocols import IntArray

KEYS = ("vs_hnswlib_95", "vs_hnswlib_99", "vs_usearch_95", "vs_faiss_95", "memory_ratio", "build_ratio")
ROWS, QUICK_ROWS = 200_000, 50_000
REAL_ROWS = 200_000
"""Beyond so many, vectors are real ones with noise."""
TUNING, TESTED = 1000, 1000
K = 10
TARGETS = (0.95, 0.99)
NEAR = 0.04
"""How far from its target's recall a point of hone's own front is still measured."""
EFFORTS = (16, 32, 64, 96, 128, 192)
PEERS: Mapping[str, tuple[str, Mapping[str, Any], str, Sequence[int]]] = {
    "hnswlib M16": ("hnswlib", {"m": 16, "ef_construction": 200}, "ef", EFFORTS),
    "usearch bf16": ("usearch", {"dtype": "bf16"}, "expansion", EFFORTS),
    "faiss HNSW32": ("faiss", {"factory": "HNSW32,Flat"}, "efSearch", EFFORTS),
    "faiss IVF1024,Flat": ("faiss", {"factory": "IVF1024,Flat"}, "nprobe", (16, 32, 64, 128)),
}
"""Name: environment and contestant, settings, the parameter of a search, and its values."""
Fronts = dict[str, list[Measured]]


def main() -> None:
    """Measure and print."""
    parser = parser_for("search", "Queries/s at recall@10 .95 and .99 against hnswlib, usearch and FAISS used bare.")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="data sets whose sentences come after DATA's")
    parser.add_argument("--rows", type=int, help=f"vectors; above {REAL_ROWS:,} hone alone, over real ones with noise")
    given = parser.parse_args()
    options, host = options_of(given), machine.look()
    show(host.sentence)
    rows = given.rows or (QUICK_ROWS if options.quick else ROWS)
    vectors, folder = _vectors(given, rows)
    tuning, tested, exact = _queries(options.data, vectors, folder)
    with started(_entrants(vectors, folder, tuning, peers=rows <= REAL_ROWS)) as contestants:
        built = {one.entrant.name: _build_facts(one) for one in contestants}
        settings = {name: _settings(name, facts) for name, facts in built.items()}
        rates = {t: _race(contestants, settings, (tested, exact), t, options.rounds) for t in (1, THREADS)}
    _report(built, rates, rows, host.as_facts())


def _vectors(given: Namespace, rows: int) -> tuple[Vectors, Path]:
    """Return the vectors, encoded or made at the first call, and the folder of their indexes."""
    encoder = open_encoder()
    texts = sentences([given.data, *given.more], min(rows, REAL_ROWS))
    vectors = passage_vectors(encoder, texts, show)
    if rows > len(vectors):
        vectors = perturbed(vectors, rows, show)
    return vectors, vectors.paths[0].parent


def _queries(data: Path, vectors: Vectors, folder: Path) -> tuple[str, str, IntArray]:
    """Return the paths of the vectors to tune with and of other ones to test with, and the latter's exact rows."""
    encoded = query_vectors(open_encoder(), questions(data, TUNING + TESTED))
    tuning, tested, truth = (folder / f"{name}.npy" for name in ("tuning", "tested", "exact"))
    if not truth.exists():
        np.save(tuning, encoded[:TUNING])
        np.save(tested, encoded[TUNING:])
        np.save(truth, exact_search(encoded[TUNING:], vectors, K)[0])
    return str(tuning), str(tested), np.load(truth)


def _entrants(vectors: Vectors, folder: Path, tuning: str, *, peers: bool) -> list[Entrant]:
    shards = {"vectors": [str(path) for path in vectors.paths], "threads": THREADS}
    entrants = []
    for name, (environment, settings, _, _) in PEERS.items() if peers else ():
        given = {**shards, **settings, "index": _index_path(folder, name)}
        entrants.append(Entrant(name, f"benchmarks.contestants.{environment}_search", environment, given))
    for target in TARGETS:
        name = f"hone {target}"
        given = {**shards, "tuning": tuning, "settings": {"target_recall": target}, "index": _index_path(folder, name)}
        entrants.append(Entrant(name, "benchmarks.contestants.hone_search", OURS, given))
    return entrants


def _index_path(folder: Path, name: str) -> str:
    path = folder / "indexes" / name.replace(" ", "-")
    path.parent.mkdir(exist_ok=True)
    return str(path)


def _build_facts(contestant: Contestant) -> dict[str, Any]:
    assert contestant.loaded is not None
    return {**contestant.loaded.facts, "versions": contestant.versions}


def _settings(name: str, facts: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return the settings to measure: a peer's ladder, or the points of hone's own front near its target."""
    if name in PEERS:
        _, _, parameter, values = PEERS[name]
        return [{parameter: value} for value in values]
    choice, target = facts["choice"], float(name.removeprefix("hone "))
    points = [p for p in choice["front"] if p["factory"] == choice["factory"] and abs(p["recall"] - target) <= NEAR]
    return [point["parameters"] for point in points] or [choice["parameters"]]


def _race(
    contestants: Sequence[Contestant],
    settings: Mapping[str, Sequence[Mapping[str, float]]],
    task: tuple[str, IntArray],
    threads: int,
    rounds: int,
) -> Fronts:
    """Measure each setting of each contestant once a round, one setting of each contestant in turn."""
    queries, exact = task
    fronts = {name: [Measured(setting) for setting in of_one] for name, of_one in settings.items()}
    for turn in range(rounds * max(len(of_one) for of_one in fronts.values())):
        for contestant in contestants:
            of_one = fronts[contestant.entrant.name]
            point = of_one[turn % len(of_one)]
            if len(point.speeds) == rounds:
                continue
            answer = contestant.ask("search", queries=queries, k=K, threads=threads, **point.setting)
            point.recall = recall_at(answer.arrays["rows"], exact, K)
            point.speeds.append(len(exact) / answer.seconds)
            point.peak_rss = answer.peak_rss
    return fronts


def _at(measured: Sequence[Measured], recall: float) -> float | None:
    return speed_at([(point.recall, statistics.median(point.speeds)) for point in measured], recall)


def _report(
    built: Mapping[str, Mapping[str, Any]],
    rates: Mapping[int, Fronts],
    rows: int,
    host: Mapping[str, Any],
) -> None:
    for name, facts in built.items():
        choice = facts.get("choice")
        chosen = "" if choice is None else f"; {choice['factory']} {choice['parameters']}, mining {choice['deep']}"
        seconds, size = facts["build_seconds"], facts["bytes"] / 1e6
        show(f"{name}: built in {seconds:.1f} s, {size:.0f} MB{chosen}; {facts['versions']}")
    for threads, fronts in rates.items():
        _print_fronts(f"{rows:,} vectors, recall@{K}, {threads} threads", fronts)
    figures, reasons = _figures(built, rates[THREADS])
    one, _ = _figures(built, rates[1])
    ours = [name for name in built if name not in PEERS]
    peaks = {
        "build_rss": max(built[name]["build_rss"] for name in ours),
        "search_rss": max(point.peak_rss for name in ours for point in rates[THREADS][name]),
    }
    speeds = {f"{name} at {t}": _at(rates[THREADS][name], t) for name in built for t in TARGETS}
    more = {"rows": rows, **peaks, "speeds": speeds, "machine": host}
    last_line(KEYS, figures, reasons, one_thread=one, **more)


def _print_fronts(title: str, fronts: Fronts) -> None:
    table = Table(title=f"{title}: queries/s", title_justify="left")
    for heading in ("contestant", *(f"at {target}" for target in TARGETS), "front (recall: queries/s)"):
        table.add_column(heading, justify="right" if heading.startswith("at") else "left")
    for name, measured in fronts.items():
        cells = [f"{speed:,.0f}" if (speed := _at(measured, t)) else "not reached" for t in TARGETS]
        shown = front([(point.recall, statistics.median(point.speeds)) for point in measured])
        table.add_row(name, *cells, "  ".join(f"{recall:.3f}: {speed:,.0f}" for recall, speed in shown))
    show(table)


def _figures(built: Mapping[str, Mapping[str, Any]], fronts: Fronts) -> tuple[dict[str, float | None], dict[str, str]]:
    if not {*PEERS} <= {*built}:
        return dict.fromkeys(KEYS), dict.fromkeys(KEYS, "with so many vectors hone runs alone")

    def against(peers: Sequence[str], target: float) -> float | None:
        ours, theirs = _at(fronts[f"hone {target}"], target), [_at(fronts[peer], target) for peer in peers]
        reached = [speed for speed in theirs if speed is not None]
        return ours / max(reached) if ours is not None and reached else None

    bare = [name for name in PEERS if name.startswith("faiss")]
    ours, theirs = built["hone 0.95"], built["hnswlib M16"]
    figures = {
        "vs_hnswlib_95": against(["hnswlib M16"], 0.95),
        "vs_hnswlib_99": against(["hnswlib M16"], 0.99),
        "vs_usearch_95": against(["usearch bf16"], 0.95),
        "vs_faiss_95": against(bare, 0.95),
        "memory_ratio": ours["bytes"] / theirs["bytes"],
        "build_ratio": ours["build_seconds"] / theirs["build_seconds"],
    }
    return figures, {key: "a side does not reach the recall" for key, value in figures.items() if value is None}


if __name__ == "__main__":
    main()
