"""Claim: hone's index answers more queries a second than hnswlib at the same recall, is smaller and sooner built.

Over vectors of real sentences and questions; does not know how any contestant searches.
"""

import statistics
import uuid
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import machine
from benchmarks.alternation import THREADS, WITHOUT_GPU, Contestant, Entrant, started
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
EFFORTS, PROBES, FACTORS = (16, 32, 64, 96, 128, 192), (16, 32, 64, 128), (2, 4, 8)
Setting = Mapping[str, float]
Fronts = dict[str, list[Measured]]


@dataclass(frozen=True)
class Peer:
    """Its environment and contestant, how it builds, and the settings of a search that are measured."""

    environment: str
    built: Mapping[str, Any]
    ladder: Sequence[Setting]


PEERS = {
    "hnswlib M16": Peer("hnswlib", {"m": 16, "ef_construction": 200}, [{"ef": value} for value in EFFORTS]),
    "usearch bf16": Peer("usearch", {"dtype": "bf16"}, [{"expansion": value} for value in EFFORTS]),
    "faiss HNSW32": Peer("faiss", {"factory": "HNSW32,Flat"}, [{"efSearch": value} for value in EFFORTS]),
    "faiss IVF1024,Flat": Peer("faiss", {"factory": "IVF1024,Flat"}, [{"nprobe": value} for value in PROBES]),
    # The kind that hone's "auto" chooses among, by hand: what FAISS gives to somebody who knows it.
    "faiss IVF1024,PQ192x4fs,Refine(SQfp16)": Peer(
        "faiss",
        {"factory": "IVF1024,PQ192x4fs,Refine(SQfp16)"},
        [{"nprobe": probes, "k_factor_rf": factor} for probes, factor in product(PROBES, FACTORS)],
    ),
}
WAYS = {f"{THREADS} threads": (THREADS, 0), "one thread": (1, 0), "one thread, one query at a time": (1, 1)}
"""Name: threads, and how many queries a call hands over, 0 for all."""
MANY, ONE_THREAD, ALONE = WAYS
BUILT_APART = "the two were built in different runs; delete the folder of the vectors' indexes to build both anew"


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
    entrants = _entrants(vectors, folder, tuning, peers=rows <= REAL_ROWS)
    with started(entrants):
        pass  # whoever searches below has not built: its memory is that of searching
    with started(entrants) as contestants:
        built = {one.entrant.name: _build_facts(one) for one in contestants}
        settings = {name: _settings(name, facts) for name, facts in built.items()}
        rates = {way: _race(contestants, settings, (tested, exact), way, options.rounds) for way in WAYS}
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
    shards = {"vectors": [str(path) for path in vectors.paths], "threads": THREADS, "run": uuid.uuid4().hex}
    entrants = []
    for name, peer in PEERS.items() if peers else ():
        given = {**shards, **peer.built, "index": _index_path(folder, name)}
        entrants.append(Entrant(name, f"benchmarks.contestants.{peer.environment}_search", peer.environment, given))
    for target in TARGETS:
        name = f"hone {target}"
        given = {**shards, "tuning": tuning, "settings": {"target_recall": target}, "index": _index_path(folder, name)}
        entrants.append(Entrant(name, "benchmarks.contestants.hone_search", OURS, given, WITHOUT_GPU))
    return entrants


def _index_path(folder: Path, name: str) -> str:
    path = folder / "indexes" / name.replace(" ", "-")
    path.parent.mkdir(exist_ok=True)
    return str(path)


def _build_facts(contestant: Contestant) -> dict[str, Any]:
    assert contestant.loaded is not None
    return {**contestant.loaded.facts, "versions": contestant.versions}


def _settings(name: str, facts: Mapping[str, Any]) -> Sequence[Setting]:
    """Return the settings to measure: a peer's ladder, or the points of hone's own front near its target."""
    if name in PEERS:
        return PEERS[name].ladder
    choice, target = facts["choice"], float(name.removeprefix("hone "))
    points = [p for p in choice["front"] if p["factory"] == choice["factory"] and abs(p["recall"] - target) <= NEAR]
    return [point["parameters"] for point in points] or [choice["parameters"]]


def _race(
    contestants: Sequence[Contestant],
    settings: Mapping[str, Sequence[Setting]],
    task: tuple[str, IntArray],
    way: str,
    rounds: int,
) -> Fronts:
    """Measure each setting of each contestant once a round, one setting of each contestant in turn."""
    (queries, exact), (threads, at_once) = task, WAYS[way]
    fronts = {name: [Measured(setting) for setting in of_one] for name, of_one in settings.items()}
    for turn in range(rounds * max(len(of_one) for of_one in fronts.values())):
        for contestant in contestants:
            of_one = fronts[contestant.entrant.name]
            point = of_one[turn % len(of_one)]
            if len(point.speeds) == rounds:
                continue
            asked = {"queries": queries, "k": K, "threads": threads, "at_once": at_once, **point.setting}
            answer = contestant.ask("search", **asked)
            point.recall = recall_at(answer.arrays["rows"], exact, K)
            point.speeds.append(len(exact) / answer.seconds)
            point.peak_rss = answer.peak_rss
    return fronts


def _at(measured: Sequence[Measured], recall: float) -> float | None:
    return speed_at([(point.recall, statistics.median(point.speeds)) for point in measured], recall)


def _report(
    built: Mapping[str, Mapping[str, Any]],
    rates: Mapping[str, Fronts],
    rows: int,
    host: Mapping[str, Any],
) -> None:
    for name, facts in built.items():
        choice = facts.get("choice")
        chosen = "" if choice is None else f"; {choice['factory']} {choice['parameters']}, mining {choice['deep']}"
        seconds, size = facts["build_seconds"], facts["bytes"] / 1e6
        show(f"{name}: built in {seconds:.1f} s, {size:.0f} MB{chosen}; {facts['versions']}")
    for way, fronts in rates.items():
        _print_fronts(f"{rows:,} vectors, recall@{K}, {way}", fronts)
    figures, reasons = _figures(built, rates[MANY])
    others = {"one_thread": _figures(built, rates[ONE_THREAD])[0], "alone": _figures(built, rates[ALONE])[0]}
    peaks = {name: max(point.peak_rss for point in rates[MANY][name]) for name in built}
    show("Searching takes " + ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in peaks.items()))
    build_rss = max(facts["build_rss"] for name, facts in built.items() if name not in PEERS)
    speeds = {f"{name} at {t}": _at(rates[MANY][name], t) for name in built for t in TARGETS}
    more = {"rows": rows, "build_rss": build_rss, "search_rss": peaks, "speeds": speeds, "machine": host}
    last_line(KEYS, figures, reasons, **others, **more)


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
    same_run = ours.get("run") == theirs.get("run") is not None
    figures = {
        "vs_hnswlib_95": against(["hnswlib M16"], 0.95),
        "vs_hnswlib_99": against(["hnswlib M16"], 0.99),
        "vs_usearch_95": against(["usearch bf16"], 0.95),
        "vs_faiss_95": against(bare, 0.95),
        "memory_ratio": ours["bytes"] / theirs["bytes"],
        "build_ratio": ours["build_seconds"] / theirs["build_seconds"] if same_run else None,
    }
    reasons = {key: "a side does not reach the recall" for key, value in figures.items() if value is None}
    return figures, reasons if same_run else {**reasons, "build_ratio": BUILT_APART}


if __name__ == "__main__":
    main()
