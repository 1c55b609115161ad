"""Claim: a refresh costs the trainer little, a partial one costs a share of a full one, and staleness stays bounded.

Does not know how a refresh or a step is carried out: it reads what trainer and refresher report.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.alternation import NOT_INHERITED, THREADS, Contestant, Entrant, started
from benchmarks.environments import ROOT
from benchmarks.options import parse
from benchmarks.picture import draw_lines
from benchmarks.report import last_line, show
from retriever.beir import read_passages, read_queries
from retriever.trec import read_qrels

KEYS = ("steps_ratio", "rescored_cost", "unchanged_cost", "staleness_steps", "refresh_seconds")
PASSAGES, QUICK_PASSAGES = 600, 240
QUERIES = 150
INTERVALS, QUICK_INTERVALS = (10, 20, 40), (20, 40)
REFRESHED, QUICK_REFRESHED = 120, 60
"""Steps in which refreshes are asked for; a training goes on after them, so that steps are taken alone, too."""
ALONE, QUICK_ALONE = 40, 20
"""Steps alone after which a training is stopped."""
MOST_STEPS = 2000
LOOK_SECONDS = 0.5
PICTURE = "refresh-staleness.svg"
RUN = """\
seed = 13
[data]
path = "data"
dev = "{dev}"
[model]
name = "minilm"
query_max_length = 32
passage_max_length = 96
[train]
max_steps = {most}
batch_size = 8
learning_rate = 2e-5
warmup_steps = 5
save_every = {most}
[negatives]
depth = 100
[refresh]
trigger = "0-{refreshed}:{interval}"
method = "{method}"
full_every = 1000000
[index]
factory = "Flat"
"""


@dataclass(frozen=True)
class Watched:
    """One training: seconds of each step while the refresher worked and while it rested, and staleness by step.

    Steps before the first negatives, which compare fewer passages, are left out.
    """

    busy: tuple[float, ...]
    idle: tuple[float, ...]
    staleness: tuple[tuple[int, int], ...]

    @property
    def ratio(self) -> float | None:
        """Steps a second beside the refresher ÷ alone; None if there was no step of one kind."""
        if not self.busy or not self.idle:
            return None
        return statistics.mean(self.idle) / statistics.mean(self.busy)


def main() -> None:
    """Measure and print."""
    options = parse("refresh", "What refreshing costs the trainer, and how stale negatives get.")
    host = machine.look()
    show(host.sentence)
    passages = QUICK_PASSAGES if options.quick else PASSAGES
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch)
        dev = take(options.data, folder / "data", passages)
        intervals = QUICK_INTERVALS if options.quick else INTERVALS
        lengths = (QUICK_REFRESHED, QUICK_ALONE) if options.quick else (REFRESHED, ALONE)
        watched = {interval: train(folder, interval, dev, *lengths) for interval in intervals}
        write_run(folder / "partial.toml", MOST_STEPS, MOST_STEPS, dev, "partial")
        settings = {"config": str(folder / "partial.toml"), "store": str(folder / "costs")}
        entrant = Entrant("hone", "benchmarks.contestants.hone_refresh", settings=settings)
        with started([entrant]) as (contestant,):
            costs = [cost(contestant) for _ in range(options.rounds)]
    _report(host.as_facts(), passages, lengths[0], watched, costs)


def take(data: Path, folder: Path, passages: int) -> str:
    """Write a sample of the BEIR folder ``data`` with that many passages to ``folder``; return its dev split.

    Training queries come first, with their positives; the passages are filled up in the order of the corpus.
    """
    texts = {query: text for _, query, text in read_queries(data)}
    pairs = [(query, passage) for _, query, passage, relevance in read_qrels(data / "qrels/train.tsv") if relevance > 0]
    chosen: dict[str, str] = {}
    for query, passage in pairs:
        if len(chosen) < QUERIES and passage not in chosen.values():
            chosen.setdefault(query, passage)
    (folder / "qrels").mkdir(parents=True)
    positives = {*chosen.values()}
    left = passages - len(positives)
    with (folder / "corpus.jsonl").open("w") as file:
        for _, key, title, text in read_passages(data):
            left -= key not in positives
            if key in positives or left >= 0:
                file.write(json.dumps({"_id": key, "title": title, "text": text}) + "\n")
    lines = [json.dumps({"_id": query, "text": texts[query]}) for query in chosen]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
    judged = [f"{query}\t{passage}\t1" for query, passage in chosen.items()]
    (folder / "qrels/train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    return "train:0.1"


def write_run(path: Path, interval: int, refreshed: int, dev: str, method: str) -> None:
    """Write a run.toml that refreshes every ``interval`` of the first ``refreshed`` steps by ``method``."""
    path.write_text(RUN.format(most=MOST_STEPS, interval=interval, refreshed=refreshed, dev=dev, method=method))


def train(folder: Path, interval: int, dev: str, refreshed: int, alone: int) -> Watched:
    """Train with a refresher as the trainer's child, as `hone train` does, and watch. Raises RuntimeError.

    It ends once ``refreshed`` steps are over and ``alone`` steps were taken with the refresher at rest.
    """
    config, store, log = folder / f"{interval}.toml", folder / f"store-{interval}", folder / f"{interval}.log"
    write_run(config, interval, refreshed, dev, "full")
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    command = [sys.executable, "-m", "app.cli", "train", str(config), "--store", str(store), "--json"]
    environment = {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    seen = Watched((), (), ())
    with log.open("wb") as said, subprocess.Popen(command, env=environment, stdout=said, stderr=said) as child:
        while child.poll() is None:
            time.sleep(LOOK_SECONDS)
            seen = watch(_events(store))
            if len(seen.idle) >= alone and seen.staleness[-1][0] >= refreshed:
                child.send_signal(signal.SIGINT)
                child.wait()
                return replace(seen, staleness=tuple(one for one in seen.staleness if one[0] <= refreshed))
    raise RuntimeError(f"hone train ended with {child.returncode} by itself:\n{log.read_text()[-2000:]}")


def _events(store: Path) -> list[dict[str, Any]]:
    """Return what was reported so far; a line that is being written is left for the next look."""
    path = store / "events.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def watch(events: Sequence[dict[str, Any]]) -> Watched:
    """Read a training's events. A step counts for a side only if the refresher did not begin or end within it."""
    busy: list[float] = []
    idle: list[float] = []
    staleness: list[tuple[int, int]] = []
    previous, working, changed = None, False, True
    for event in sorted(events, key=lambda one: one["time"]):
        kind = event["event"]
        if kind in ("build_started", "negatives_published"):
            working, changed = kind == "build_started", True
        elif kind in ("adopted", "checkpoint", "waiting"):
            changed = True  # the step after it holds more than a step
        elif kind == "step":
            if previous is not None and not changed and event["negatives"] is not None:
                (busy if working else idle).append(event["time"] - previous)
            previous, changed = event["time"], False
            if event["negatives"] is not None:
                staleness.append((event["step"], event["staleness"]))
    return Watched(tuple(busy), tuple(idle), tuple(staleness))


def cost(contestant: Contestant) -> dict[str, float]:
    """Return the seconds of a full refresh, of one with unchanged weights and of a partial one, in that order."""
    return {name: contestant.ask(name).seconds for name in ("full", "unchanged", "partial")}


def _report(
    host: dict[str, Any], passages: int, refreshed: int, watched: dict[int, Watched], costs: Sequence[dict[str, float]]
) -> None:
    lines = {f"every {interval} steps": seen.staleness for interval, seen in watched.items()}
    Path(PICTURE).write_text(draw_lines("Staleness of the negatives in use", "step", "steps stale", lines))
    show(f"{passages} passages, steps of 8 queries; refreshed in {refreshed} steps; staleness is drawn in {PICTURE}")
    for interval, seen in watched.items():
        stale = [steps for _, steps in seen.staleness]
        ratio = "no step alone" if seen.ratio is None else f"steps/s beside the refresher ÷ alone {seen.ratio:.2f}"
        show(
            f"refresh every {interval} steps: {len(seen.busy)} steps beside it, {len(seen.idle)} alone, {ratio}; "
            f"staleness {statistics.mean(stale):.1f} on average, {max(stale)} at most"
        )
    busy = [seconds for seen in watched.values() for seconds in seen.busy]
    idle = [seconds for seen in watched.values() for seconds in seen.idle]
    for name in costs[0]:
        show(f"{name} refresh: {statistics.median(one[name] for one in costs):.2f} s of {len(costs)}")
    every = max(watched)
    figures = {
        "steps_ratio": statistics.mean(idle) / statistics.mean(busy) if busy and idle else None,
        "rescored_cost": statistics.median(one["partial"] / one["full"] for one in costs),
        "unchanged_cost": statistics.median(one["unchanged"] / one["full"] for one in costs),
        "staleness_steps": statistics.mean(steps for _, steps in watched[every].staleness),
        "refresh_seconds": statistics.median(one["full"] for one in costs),
    }
    reasons = {} if figures["steps_ratio"] else {"steps_ratio": "no step was taken beside the refresher, or none alone"}
    by_interval = {interval: max(steps for _, steps in seen.staleness) for interval, seen in watched.items()}
    last_line(KEYS, figures, reasons, passages=passages, most_stale=by_interval, machine=host)


if __name__ == "__main__":
    main()
