"""When a checkpoint is marked for a refresh, and at which step its negative set is adopted.

Does not know how negatives are mined; everything is a function of the step alone.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from retriever.errors import InputError

Trigger = Callable[[int], bool]


@dataclass(frozen=True)
class RefreshConfig:
    """[refresh]: how often negatives are renewed and how stale they may become (all in optimiser steps)."""

    trigger: str = "steps:200"
    adopt: Literal["ready", "scheduled"] = "ready"
    lag: int = 100
    query_fraction: float = 1.0
    max_staleness: int = 1000
    on_stale: Literal["wait", "warn", "stop"] = "warn"


def parse_trigger(text: str) -> Trigger:
    """Return a function that tells whether the checkpoint of a step is marked; step 0 always is.

    "steps:200", or a schedule "0-1000:500,1000-:1000" (from-to:every, the end excluded). Raises InputError for
    anything else.
    """
    if match := re.fullmatch(r"steps:([1-9]\d*)", text):
        every = int(match[1])
        return lambda step: step % every == 0
    spans = [re.fullmatch(r"(\d+)-(\d*):([1-9]\d*)", part.strip()) for part in text.split(",")]
    if not all(spans):
        raise InputError(f'[refresh] trigger = {text!r}: write "steps:200" or a schedule "0-1000:500,1000-:1000"')
    bounds = [(int(span[1]), int(span[2] or 2**62), int(span[3])) for span in spans if span]
    if any(start >= end for start, end, _ in bounds):
        raise InputError(f"[refresh] trigger = {text!r}: a span ends before it begins")
    return lambda step: step == 0 or any(a <= step < b and (step - a) % every == 0 for a, b, every in bounds)


def scheduled_origin(config: RefreshConfig, trigger: Trigger, step: int) -> int | None:
    """Return the step whose negative set must be adopted exactly at ``step`` under adopt = "scheduled", or None."""
    origin = step - config.lag
    return origin if origin >= 0 and trigger(origin) else None
