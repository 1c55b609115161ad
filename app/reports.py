"""Where reports go: JSON lines, the store's event log, TensorBoard; and how another process's events are read.

Does not know how a terminal is drawn, nor what the events mean.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, TextIO

from app.progress import Report
from retriever.store import Store

TAIL_SECONDS = 0.3
STEP_SCALARS = {
    "loss",
    "contrastive_loss",
    "teacher_loss",
    "unscored",
    "learning_rate",
    "steps_per_second",
    "staleness",
    "temperature",
    "uniformity",
    "tolerance",
}


def all_of(*reports: Report) -> Report:
    """Return a report that passes each event on to all ``reports``."""

    def report(event: str, **fields: Any) -> None:
        for one in reports:
            one(event, **fields)

    return report


def json_lines(stream: TextIO) -> Report:
    """Return a report that writes one JSON object an event."""

    def report(event: str, **fields: Any) -> None:
        print(json.dumps({"time": round(time.time(), 3), "event": event, **fields}), file=stream, flush=True)

    return report


def event_log(store: Store, source: str) -> Report:
    """Return a report that appends to the store's events.jsonl, naming the process's role as ``source``."""

    def report(event: str, **fields: Any) -> None:
        store.log_event(event, source=source, **fields)

    return report


@contextmanager
def tensorboard(folder: Path) -> Iterator[Report]:
    """Give a report that writes the numbers of steps and generations as TensorBoard scalars into ``folder``."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training wants it

    writer = SummaryWriter(str(folder))

    def report(event: str, **fields: Any) -> None:
        if event == "step":
            for name in STEP_SCALARS & fields.keys():
                folder = "ranker" if fields.get("phase") == "ranker" else "train"
                writer.add_scalar(f"{folder}/{name}", fields[name], fields["step"])
        elif event == "staleness":
            for name in ("overlap", "drift", "easy"):
                writer.add_scalar(f"staleness/{name}", fields[name], fields["step"])
        elif event == "generation_published":
            for name, value in (fields.get("dev") or {}).items():
                writer.add_scalar(f"dev/{name}", value, fields["step"])

    try:
        yield report
    finally:
        writer.close()


@contextmanager
def forwarded(store: Store, own: str, report: Report) -> Iterator[None]:
    """Pass the events that processes other than ``own`` append to events.jsonl on to ``report`` in the block."""
    ended = Event()
    path = store.root / "events.jsonl"
    start = path.stat().st_size if path.exists() else 0
    thread = Thread(target=_tail, args=(path, start, own, report, ended.wait), name="event-tail", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _tail(path: Path, position: int, own: str, report: Report, ended: Callable[[float], bool]) -> None:
    last = False
    while not last:
        last = ended(TAIL_SECONDS)  # one more look after the end, so that nothing is missed
        if not path.exists():
            continue
        with path.open("rb") as file:
            file.seek(position)
            *lines, _ = file.read().split(b"\n")
        position += sum(len(line) + 1 for line in lines)
        for line in lines:
            fields = json.loads(line)
            if fields.pop("source", None) != own:
                fields.pop("time")
                report(fields.pop("event"), **fields)
