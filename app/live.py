"""The live view of a training run: a small table on a terminal, JSON lines elsewhere.

Does not know where events come from.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.progress import Report
from app.reports import json_lines
from retriever.counting import counted

QUIET = {"progress", "step", "waiting", "build", "build_started", "checkpoint", "removed", "staleness"}
IDLE = "waits for a marked checkpoint"
BAR_WIDTH = 40
SLOW = 10
"""Rates below this are shown with a digit more."""
SHOWN_DEV = 4


class TrainingView:
    """Keeps the newest figures of a run and draws them, a line a fact, so that it fits 80 columns."""

    def __init__(self, console: Console) -> None:
        """Messages go above the table, to ``console``."""
        self._console = console
        self._step: dict[str, Any] = {}
        self._dev: list[tuple[int, float]] = []
        self._waited: float | None = None
        self._overlap: float | None = None
        self._refresher = IDLE

    def report(self, event: str, **fields: Any) -> None:
        """Take in one event."""
        if event == "step":
            self._step, self._waited = fields, None
        elif event == "waiting":
            self._waited = fields["seconds"]
        elif event in ("staleness", "adopted"):
            self._overlap = fields.get("overlap")
        elif event == "generation_published" and fields.get("dev"):
            self._dev.append((fields["step"], fields["dev"]["nDCG@10"]))
        self._refresher = _doing(event, fields) or self._refresher
        if event not in QUIET:
            self._console.print(_sentence(event, fields), highlight=False)

    def __rich__(self) -> Table:
        step = self._step
        bar = ProgressBar(total=step.get("of", 1), completed=step.get("step", 0), width=BAR_WIDTH)
        loss, rate = "–", "–"
        if step:
            loss = f"{step['loss']:.4f}"
            rate = f"{step['steps_per_second']:.2f} steps/s, {duration(step['eta_seconds'])} left"
        source = "in-batch only" if step.get("generation") is None else f"generation {step['generation']}"
        waited = "" if self._waited is None else f"; has waited {duration(self._waited)} for newer ones"
        table = Table.grid(padding=(0, 2))
        table.add_row("step", f"{step.get('step', 0)} of {step.get('of', '?')}")
        table.add_row("", bar)
        table.add_row("loss", loss)
        table.add_row("rate", rate)
        table.add_row("dev nDCG@10", " → ".join(f"{value:.3f} @{at}" for at, value in self._dev[-SHOWN_DEV:]) or "–")
        overlap = "" if self._overlap is None else f", overlap@10 {self._overlap:.2f}"
        table.add_row(
            "negatives", f"{source}, {counted(step.get('staleness', 0), 'step', 'steps')} stale{overlap}{waited}"
        )
        table.add_row("refresher", Text(self._refresher))
        return table


def _doing(event: str, fields: dict[str, Any]) -> str | None:
    """Return what an event says of what the refresher does now, None if it says nothing of it."""
    if event == "progress":
        return _progress_text(fields)
    if event == "build_started":
        return f"encodes the corpus with checkpoint {fields['checkpoint']} (step {fields['step']})"
    return {"refresher_started": "starts", "negatives_published": IDLE, "drained": "done"}.get(event)


def duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _progress_text(fields: dict[str, Any]) -> str:
    text = f"{fields['phase']} {fields['done']:,} of {fields['total']:,}" if fields["total"] > 1 else fields["phase"]
    if "rate" in fields:
        digits = 0 if fields["rate"] >= SLOW else 1
        text += f", {fields['rate']:.{digits}f}/s, {duration(fields['eta_seconds'])} left"
    return text


def _sentence(event: str, fields: dict[str, Any]) -> str:
    if event == "warning":
        return f"[yellow]warning[/]: {escape(fields['message'])}"
    if event == "generation_published":
        dev = (fields.get("dev") or {}).get("nDCG@10")
        score = "" if dev is None else f", dev nDCG@10 {dev:.4f}"
        return f"generation {fields['number']} of step {fields['step']}{score}"
    if event == "negatives_published":
        return f"negatives {fields['number']} mined from generation {fields['generation']}"
    if event == "adopted":
        return (
            f"step {fields['step']}: adopts negatives {fields['negatives']} "
            f"of generation {fields['generation']}, {counted(fields['staleness'], 'step', 'steps')} old"
        )
    details = ", ".join(f"{name} {value}" for name, value in fields.items() if not isinstance(value, dict))
    name = event.replace("_", " ")
    return f"{name}: {escape(details)}" if details else name


@contextmanager
def training_view() -> Iterator[Report]:
    """Give a report that shows a run as it goes: drawn on a terminal, else as JSON lines on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield json_lines(sys.stderr)
        return
    view = TrainingView(console)
    with Live(view, console=console, refresh_per_second=4):
        yield view.report


@contextmanager
def progress_view() -> Iterator[Report]:
    """Give a report for one piece of work: a line that is rewritten on a terminal, else JSON lines; both on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield json_lines(sys.stderr)
        return
    with console.status("starts") as status:

        def report(event: str, **fields: Any) -> None:
            if event == "progress":
                status.update(_progress_text(fields))
            elif event not in QUIET:
                console.print(_sentence(event, fields), highlight=False)

        yield report
