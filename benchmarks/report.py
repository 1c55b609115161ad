"""From the answers of an alternation to what is printed: rates, ratios a round, the table and the last line.

Does not know who was measured or why.
"""

import json
import os
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.alternation import Answer
from benchmarks.environments import HERE
from retriever.store import code_version

Answers = Mapping[str, Sequence[Answer]]


def ratio(answers: Answers, peer: str, ours: str) -> float:
    """Return how many times faster ``ours`` was than ``peer``: the median of the rounds' ratios."""
    return statistics.median(_ratios(answers[peer], answers[ours]))


def rss_ratio(answers: Answers, peer: str, ours: str) -> float:
    """Return the peak memory of ``ours`` as a share of ``peer``'s."""
    return answers[ours][-1].peak_rss / answers[peer][-1].peak_rss


def _ratios(peer: Sequence[Answer], ours: Sequence[Answer]) -> list[float]:
    return [theirs.seconds / mine.seconds for theirs, mine in zip(peer, ours, strict=True)]


def print_rates(title: str, unit: str, amount: float, answers: Answers, ours: str) -> None:
    """Print one row a contestant: ``amount`` of ``unit`` a second as median and range, and how ``ours`` compares."""
    rounds = len(answers[ours])
    table = Table(title=f"{title}: medians of {rounds} rounds (least – most)", title_justify="left")
    for heading in ("contestant", f"{unit}/s", f"{ours} is × faster", "peak MB"):
        table.add_column(heading, justify="left" if heading == "contestant" else "right")
    for name, given in answers.items():
        faster = "" if name == ours else _spread(_ratios(given, answers[ours]))
        rates = [amount / answer.seconds for answer in given]
        table.add_row(name, _spread(rates), faster, f"{given[-1].peak_rss / 2**20:,.0f}")
    show(table)


def _spread(values: Sequence[float]) -> str:
    median, least, most = statistics.median(values), min(values), max(values)
    digits = 0 if median >= 100 else 1 if median >= 10 else 2
    return f"{median:,.{digits}f} ({least:,.{digits}f} – {most:,.{digits}f})"


def show(what: Any) -> None:
    """Print text or a rich table; never narrower than a table needs, also into a file."""
    console = Console(soft_wrap=True) if isinstance(what, str) else Console(width=max(120, Console().width))
    console.print(what, highlight=False, markup=False)


def last_line(
    keys: Sequence[str], figures: Mapping[str, Any], reasons: Mapping[str, str], **more: Any
) -> dict[str, Any]:
    """Print and return the JSON object that ends a benchmark: each of ``keys``, why one is null, and ``more``.

    "command" and "code" tell what was asked for and of which sources; "peers_here", that peers ran in this Python.
    Scalars of numpy become numbers. Raises ValueError if a key is missing or unknown, or null without a reason, and
    TypeError for what JSON does not know.
    """
    if {*figures} != {*keys}:
        raise ValueError(f"the figures {sorted(figures)} are not the claim's keys {sorted(keys)}")
    silent = [key for key in keys if figures[key] is None and key not in reasons]
    if silent:
        raise ValueError(f"{', '.join(silent)}: null without a reason")
    for key, reason in reasons.items():
        show(f"{key}: not measured, {reason}")
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in figures.items()}
    rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in plain.items()}
    asked = {"command": shlex.join([Path(sys.argv[0]).stem, *sys.argv[1:]]), "code": code_version()}
    here = {"peers_here": True} if os.environ.get(HERE) else {}
    line = json.dumps({**rounded, "reasons": dict(reasons), **more, **asked, **here}, default=_plain)
    print(line, flush=True)
    ended: dict[str, Any] = json.loads(line)
    return ended


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r}: JSON does not know {type(value).__name__}")
