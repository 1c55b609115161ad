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
from retriever.beir import find_file, read_passages, read_queries
from retriever.trec import read_qrels

KEYS = ("steps_ratio", "partial_cost", "unchanged_cost", "staleness_steps", "refresh_seconds")
PASSAGES, QUICK_PASSAGES = 600, 160
"""What a refresh alone is measured with."""
TRAINED_PASSAGES, QUERIES = 160, 150
"""What a training refreshes beside its steps: few, for the refresher has the lowest priority."""
INTERVALS, QUICK_INTERVALS = (10, 30), (30,)
LAST_MARK, QUICK_LAST_MARK = 60, 30
"""The step of a training's last refresh, a multiple of each interval."""
ALONE = 15
"""Steps with the negatives of the last refresh, and so without the refresher, after which a training is stopped."""
MOST_STEPS = 2000
LOOK_SECONDS = 1.0
PICTURE = "refresh-staleness.svg"
RUN = """\
seed = 13
[data]
path = "{data}"
dev = "train:0.1"
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
trigger = "0-{end}:{interval}"
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
        take(options.data, folder / "trained", TRAINED_PASSAGES)
        intervals, last = (QUICK_INTERVALS, QUICK_LAST_MARK) if options.quick else (INTERVALS, LAST_MARK)
        watched = {interval: train(folder, interval, last) for interval in intervals}
        take(options.data, folder / "refreshed", passages)
        write_run(folder / "partial.toml", "refreshed", 1, 1, "partial")
        settings = {"config": str(folder / "partial.toml"), "store": str(folder / "costs")}
        entrant = Entrant("hone", "benchmarks.contestants.hone_refresh", settings=settings)
        with started([entrant]) as (contestant,):
            costs = [cost(contestant) for _ in range(options.rounds)]
    _report(host.as_facts(), passages, watched, costs)


def take(data: Path, folder: Path, passages: int) -> None:
    """Write a sample of the BEIR folder ``data`` with that many passages to ``folder``.

    Training queries come first, with their positives; the passages are filled up in the order of the corpus.
    """
    texts = {query: text for _, query, text in read_queries(data)}
    qrels = read_qrels(find_file(data, "qrels/train.tsv"))
    pairs = [(query, passage) for _, query, passage, relevance in qrels if relevance > 0]
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


def write_run(path: Path, data: str, interval: int, last: int, method: str) -> None:
    """Write a run.toml that refreshes by ``method`` at step 0 and every ``interval`` steps up to step ``last``."""
    path.write_text(RUN.format(data=data, most=MOST_STEPS, interval=interval, end=last + 1, method=method))


def train(folder: Path, interval: int, last: int) -> Watched:
    """Train with a refresher as the trainer's child, as `hone train` does, and watch. Raises RuntimeError.

    It is stopped ALONE steps after the negatives of step ``last``, the last refresh, were adopted. However long a
    refresh takes, that gives steps of both kinds. Staleness is told up to when a further refresh would be asked for.
    """
    config, store, log = folder / f"{interval}.toml", folder / f"store-{interval}", folder / f"{interval}.log"
    write_run(config, "trained", interval, last, "full")
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    command = [sys.executable, "-m", "app.cli", "train", str(config), "--store", str(store), "--json"]
    environment = {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as said, subprocess.Popen(command, env=environment, stdout=said, stderr=said) as child:
        while child.poll() is None:
            time.sleep(LOOK_SECONDS)
            seen = watch(_events(store))
            if is_over(seen, last):
                child.send_signal(signal.SIGINT)
                child.wait()
                return replace(seen, staleness=tuple(one for one in seen.staleness if one[0] <= last + interval))
    raise RuntimeError(f"hone train ended with {child.returncode} by itself:\n{log.read_text()[-2000:]}")


def is_over(seen: Watched, last: int) -> bool:
    """Tell whether ALONE steps were taken with the negatives of step ``last``."""
    return sum(step - stale == last for step, stale in seen.staleness) >= ALONE


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
        elif kind in ("adopted", "checkpoint", "staleness", "waiting"):
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
    answers = {name: contestant.ask(name) for name in ("full", "unchanged", "partial")}
    show(f"the partial refresh encoded {answers['partial'].facts['encoded']} passages")
    return {name: answer.seconds for name, answer in answers.items()}


def _report(
    host: dict[str, Any], passages: int, watched: dict[int, Watched], costs: Sequence[dict[str, float]]
) -> None:
    lines = {f"every {interval} steps": seen.staleness for interval, seen in watched.items()}
    Path(PICTURE).write_text(draw_lines("Staleness of the negatives in use", "step", "steps stale", lines))
    show(f"steps of 8 queries beside refreshes of {TRAINED_PASSAGES} passages; staleness is drawn in {PICTURE}")
    for interval, seen in watched.items():
        stale = [steps for _, steps in seen.staleness]
        ratio = "no step alone" if seen.ratio is None else f"steps/s beside the refresher ÷ alone {seen.ratio:.2f}"
        show(
            f"refresh every {interval} steps: {len(seen.busy)} steps beside it, {len(seen.idle)} alone, {ratio}; "
            f"staleness {statistics.mean(stale):.1f} on average, {max(stale)} at most"
        )
    ratios = [seen.ratio for seen in watched.values() if seen.ratio is not None]
    show(f"refreshes of {passages} passages, alone:")
    for name in costs[0]:
        show(f"{name} refresh: {statistics.median(one[name] for one in costs):.2f} s of {len(costs)}")
    every = max(watched)
    figures = {
        "steps_ratio": statistics.mean(ratios) if ratios else None,
        "partial_cost": statistics.median(one["partial"] / one["full"] for one in costs),
        "unchanged_cost": statistics.median(one["unchanged"] / one["full"] for one in costs),
        "staleness_steps": statistics.mean(steps for _, steps in watched[every].staleness),
        "refresh_seconds": statistics.median(one["full"] for one in costs),
    }
    reasons = {} if figures["steps_ratio"] else {"steps_ratio": "a refresh is over within a step"}
    by_interval = {interval: max(steps for _, steps in seen.staleness) for interval, seen in watched.items()}
    last_line(KEYS, figures, reasons, passages=passages, most_stale=by_interval, machine=host)


if __name__ == "__main__":
    main()
