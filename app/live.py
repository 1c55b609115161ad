"""The live view of a training run: a small table on a terminal, JSON lines elsewhere.

Does not know where events come from.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.progress import Report
from app.reports import json_lines

QUIET = {"progress", "step", "build_started", "checkpoint"}
SECONDS_A_MINUTE = 60


class TrainingView:
    """Keeps the newest figures of a run and draws them."""

    def __init__(self, console: Console) -> None:
        """Messages go above the table, to ``console``."""
        self._console = console
        self._step: dict[str, Any] = {}
        self._dev: list[tuple[int, float]] = []
        self._rebuild = "waits for a marked checkpoint"

    def report(self, event: str, **fields: Any) -> None:
        """Take in one event."""
        if event == "step":
            self._step = fields
        elif event == "progress":
            self._rebuild = _progress_text(fields)
        elif event == "build_started":
            self._rebuild = f"encodes the corpus with checkpoint {fields['checkpoint']} (step {fields['step']})"
        elif event == "generation_published" and fields.get("dev"):
            self._dev.append((fields["step"], fields["dev"]["nDCG@10"]))
        if event not in QUIET:
            self._console.print(_sentence(event, fields), highlight=False)

    def __rich__(self) -> Group:
        step = self._step
        table = Table.grid(padding=(0, 2))
        table.add_row("step", f"{step.get('step', 0)} of {step.get('of', '?')}", "loss", str(step.get("loss", "–")))
        rate = f"{step['steps_per_second']:.2f} steps/s" if step else "–"
        table.add_row("rate", rate, "time left", duration(step.get("eta_seconds")))
        dev = " → ".join(f"{value:.3f} @{at}" for at, value in self._dev[-4:]) or "–"
        source = "in-batch only" if step.get("generation") is None else f"generation {step['generation']}"
        table.add_row("dev nDCG@10", dev, "negatives", f"{source}, {step.get('staleness', 0)} steps stale")
        bar = ProgressBar(total=step.get("of", 1), completed=step.get("step", 0), width=60)
        return Group(bar, table, Text(f"refresher: {self._rebuild}", style="dim"))


def duration(seconds: float | None) -> str:
    """Return seconds as a person says them."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), SECONDS_A_MINUTE)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _progress_text(fields: dict[str, Any]) -> str:
    text = f"{fields['phase']} {fields['done']} of {fields['total']}"
    if "rate" in fields:
        text += f", {fields['rate']:.0f}/s, {duration(fields['eta_seconds'])} left"
    return text


def _sentence(event: str, fields: dict[str, Any]) -> str:
    if event == "warning":
        return f"[yellow]warning[/]: {escape(fields['message'])}"
    if event == "generation_published":
        dev = (fields.get("dev") or {}).get("nDCG@10")
        score = "" if dev is None else f", dev nDCG@10 {dev:.4f}"
        return f"generation {fields['number']} of step {fields['step']}{score}"
    if event == "adopted":
        return (
            f"step {fields['step']}: adopts negatives {fields['negatives']} "
            f"of generation {fields['generation']}, {fields['staleness']} steps old"
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
