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
    generation before; "rescore" encodes only the passages of the last set's pools and scores these candidates anew,
    without a search (Izacard et al., "Atlas", JMLR 2023). Each ``full_every``-th refresh, the first and the last encode
    all of them. Every ``probe_every`` steps (0: never) the staleness of the best ``probe_depth`` candidates of
    ``probe_queries`` queries is measured.
    """

    trigger: str = "steps:200"
    method: Literal["full", "partial", "rescore"] = "full"
    share: float = 0.2
    full_every: int = 5
    adopt: Literal["ready", "scheduled"] = "ready"
    lag: int = 100
    query_fraction: float = 1.0
    max_staleness: int = 1000
    on_stale: Literal["wait", "warn", "stop"] = "warn"
    probe_every: int = 50
    probe_queries: int = 16
    probe_depth: int = 30


def parse_trigger(text: str, save_every: int) -> Trigger:
    """Return a function that tells whether the checkpoint of a step is marked; the final one is in any case.

    With step 0: "steps:200", a schedule "0-1000:500,1000-:1000" (from-to:every, the end excluded), "checkpoint" (each
    that is saved, every ``save_every`` steps) and "staleness:0.3" (see ``staleness_limit``: no other step is known
    before). "once": step 0 alone; "never". Raises InputError for anything else.
    """
    if text in ("once", "never") or staleness_limit(text) is not None:
        return lambda step: step == 0 and text != "never"
    if match := re.fullmatch(r"steps:([1-9]\d*)", f"steps:{save_every}" if text == "checkpoint" else text):
        every = int(match[1])
        return lambda step: step % every == 0
    spans = [re.fullmatch(r"(\d+)-(\d*):([1-9]\d*)", part.strip()) for part in text.split(",")]
    if not all(spans):
        forms = '"steps:200", a schedule "0-1000:500,1000-:1000", "checkpoint", "staleness:0.3", "once" or "never"'
        raise InputError(f"[refresh] trigger = {text!r}: write {forms}")
    bounds = [(int(span[1]), int(span[2] or 2**62), int(span[3])) for span in spans if span]
    if any(start >= end for start, end, _ in bounds):
        raise InputError(f"[refresh] trigger = {text!r}: a span ends before it begins")
    return lambda step: step == 0 or any(a <= step < b and (step - a) % every == 0 for a, b, every in bounds)


def staleness_limit(text: str) -> float | None:
    """Return x of a trigger "staleness:x": a checkpoint is marked where 1 − overlap@10 exceeds it; None for others.

    Raises InputError for an x outside of (0, 1).
    """
    match = re.fullmatch(r"staleness:(\d*\.?\d+)", text)
    if match is None:
        return None
    limit = float(match[1])
    if not 0 < limit < 1:
        raise InputError(f"[refresh] trigger = {text!r}: the share of candidates that changed lies in (0, 1)")
    return limit


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
