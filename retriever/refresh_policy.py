"""When a checkpoint is marked for a refresh, which kind it gets, and at which step its negative set is adopted.

Does not know how vectors or negatives are made; everything is a function of steps and of what was made before.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from retriever.errors import InputError

Trigger = Callable[[int], bool]


@dataclass(frozen=True)
class RefreshConfig:
    """[refresh]: how often negatives are renewed, how, and how stale they may become (all in optimiser steps).

    ``method`` "partial" encodes ``share`` of the passages at a refresh and maps the vectors of the others from the
    generation before; each ``full_every``-th refresh, the first and the last encode all of them.
    """

    trigger: str = "steps:200"
    method: Literal["full", "partial"] = "full"
    share: float = 0.2
    full_every: int = 5
    adopt: Literal["ready", "scheduled"] = "ready"
    lag: int = 100
    query_fraction: float = 1.0
    max_staleness: int = 1000
    on_stale: Literal["wait", "warn", "stop"] = "warn"


def parse_trigger(text: str) -> Trigger:
    """Return a function that tells whether the checkpoint of a step is marked; the final one is in any case.

    "steps:200", or a schedule "0-1000:500,1000-:1000" (from-to:every, the end excluded), both with step 0; "once":
    step 0 alone; "never". Raises InputError for anything else.
    """
    if text in ("once", "never"):
        return lambda step: step == 0 and text == "once"
    if match := re.fullmatch(r"steps:([1-9]\d*)", text):
        every = int(match[1])
        return lambda step: step % every == 0
    spans = [re.fullmatch(r"(\d+)-(\d*):([1-9]\d*)", part.strip()) for part in text.split(",")]
    if not all(spans):
        forms = '"steps:200", a schedule "0-1000:500,1000-:1000", "once" or "never"'
        raise InputError(f"[refresh] trigger = {text!r}: write {forms}")
    bounds = [(int(span[1]), int(span[2] or 2**62), int(span[3])) for span in spans if span]
    if any(start >= end for start, end, _ in bounds):
        raise InputError(f"[refresh] trigger = {text!r}: a span ends before it begins")
    return lambda step: step == 0 or any(a <= step < b and (step - a) % every == 0 for a, b, every in bounds)


def partial_turn(config: RefreshConfig, checkpoint: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> int | None:
    """Return the turn of the partial generation that ``checkpoint`` is due, None if it is due a full one.

    Both are facts: the checkpoint's and those of the generation before (None: there is none to map from).
    """
    if config.method == "full" or earlier is None or checkpoint.get("final"):
        return None
    before = earlier.get("partial")
    turn = 0 if before is None else int(before["turn"]) + 1
    return turn if turn < config.full_every - 1 else None


def scheduled_origin(config: RefreshConfig, trigger: Trigger, step: int) -> int | None:
    """Return the step whose negative set must be adopted exactly at ``step`` under adopt = "scheduled", or None."""
    origin = step - config.lag
    return origin if origin >= 0 and trigger(origin) else None
