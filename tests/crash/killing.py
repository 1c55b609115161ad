"""Runs `hone train` while killing its processes, until it ends by itself. It does not know pytest."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.refresher_process import RESTARTS
from retriever.durable import read_lines
from tests.stand_ins import write_tiny_data
from tests.tiny_model import write_tiny_model

LOOK_SECONDS = 0.005
SAID_BEFORE_WORK = ("refresher_started", "warning")

RUN_FILE = """\
seed = 3
[data]
path = "data"
[model]
name = "{model}"
[train]
max_steps = {steps}
batch_size = 8
learning_rate = 1e-3
warmup_steps = 4
precision = "fp32"
save_every = 7
[negatives]
depth = 50
[refresh]
trigger = "steps:15"
adopt = "{adopt}"
lag = 8
[index]
precision = "fp32"
"""


def write_run(folder: Path, adopt: str, steps: int) -> Path:
    """Write data, model and run.toml below ``folder`` and return the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data").exists():
        write_tiny_data(folder / "data", passages=200, queries=160)
        write_tiny_model(folder / "model")
    path = folder / f"{adopt}.toml"
    path.write_text(RUN_FILE.format(model=folder / "model", adopt=adopt, steps=steps))
    return path


def hone(*arguments: str | Path) -> list[str]:
    """Return a command line of hone in this interpreter."""
    return [sys.executable, "-m", "app.cli", *map(str, arguments)]


@dataclass(frozen=True)
class Life:
    """A running victim: what it has said since it was started, and what it seems to be doing now."""

    pid: int
    started: float
    said: list[dict[str, Any]]
    phase: str


@dataclass
class Ending:
    """How killed runs went: kills by what the victim was doing, and how often the command was given."""

    phases: Counter[str] = field(default_factory=Counter)
    starts: int = 0

    @property
    def kills(self) -> int:
        """How often the victim was killed."""
        return self.phases.total()


Ripe = Callable[[Life, Counter[str]], bool]
"""Asked again and again: is this the moment, after kills in these phases?"""


def at_random(seed: int, mean_seconds: float) -> Ripe:
    """Kill after exponentially distributed delays, one life in five counted from its start, the others from when it
    has begun to work."""
    generator = random.Random(seed)
    plans: dict[int, tuple[bool, float]] = {}

    def ripe(life: Life, phases: Counter[str]) -> bool:
        if life.pid not in plans:
            plans[life.pid] = generator.random() < 0.2, generator.expovariate(1 / mean_seconds)
        early, delay = plans[life.pid]
        since = life.started if early else life.said[0]["time"] if life.said else math.inf
        return time.time() - since > delay

    return ripe


def train_under_fire(config: Path, store: Path, victim: str, ripe: Ripe, kills: int) -> Ending:
    """Run the training to its end, killing ``victim`` ("trainer" or "refresher") up to ``kills`` times with SIGKILL.

    A trainer whose refresher died six times in a row gives up with exit code 2; the same command goes on from there.
    Raises AssertionError if a run that is not killed fails otherwise.
    """
    ending = Ending()
    while True:
        ending.starts += 1
        before, started = len(read_lines(store / "events.jsonl")), time.time()
        with (config.parent / "train.log").open("ab") as log:
            process = subprocess.Popen(hone("train", config, "--store", store), stdout=log, stderr=log)
        events: list[dict[str, Any]] = []
        size = 0
        while ending.kills < kills and process.poll() is None:
            time.sleep(LOOK_SECONDS)
            now = (store / "events.jsonl").stat().st_size if (store / "events.jsonl").exists() else 0
            if now != size:
                size, events = now, read_lines(store / "events.jsonl")[before:]
            life = _trainer(process.pid, started, events, store) if victim == "trainer" else _refresher(events, store)
            if life is not None and ripe(life, ending.phases):
                _kill(process, life)
                ending.phases[_phase(store, victim, life.said)] += 1
        code = process.wait()
        gave_up = code == 2 and victim == "refresher" and ending.kills > RESTARTS
        if code != -signal.SIGKILL and not gave_up:
            assert code == 0, (config.parent / "train.log").read_text()[-2000:]
            return ending


def _kill(process: subprocess.Popen[bytes], life: Life) -> None:
    with suppress(ProcessLookupError):
        os.kill(life.pid, signal.SIGKILL)
    while process.poll() is None and _is_alive(life.pid):
        time.sleep(LOOK_SECONDS)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _trainer(pid: int, started: float, events: list[dict[str, Any]], store: Path) -> Life:
    said = [one for one in events if one.get("source") == "trainer" and one["event"] not in SAID_BEFORE_WORK]
    return Life(pid, started, said, _phase(store, "trainer", said))


def _refresher(events: list[dict[str, Any]], store: Path) -> Life | None:
    """Return the refresher of the trainer that logged ``events``, None while there is none."""
    births = [place for place, one in enumerate(events) if one["event"] == "refresher_started"]
    if not births or not _is_alive(events[births[-1]]["pid"]):
        return None
    birth = events[births[-1]]
    said = [
        one
        for one in events[births[-1] :]
        if (one.get("source") == "refresher" and one["event"] not in SAID_BEFORE_WORK)
        or one["event"] == "generation_published"
    ]
    return Life(birth["pid"], birth["time"], said, _phase(store, "refresher", said))


def _phase(store: Path, victim: str, said: list[dict[str, Any]]) -> str:
    """Name what a victim does, or did when it was killed, by what it said last and what it has staged."""
    if not said:
        return "starts"
    last = said[-1]
    if victim == "trainer":
        if _staged(store, "checkpoints"):
            return "saves a checkpoint"
        if last.get("final"):
            return "waits for the last generation"
        return "waits for negatives" if last["event"] == "waiting" else "steps"
    if _staged(store, "negatives"):
        return "mines"
    if _staged(store, "generations"):
        return "builds"
    if last["event"] in ("build", "build_started") or last.get("phase") == "encode":
        return "encodes"
    between = ("progress", "generation_published", "generation_reused")
    return "between building and mining" if last["event"] in between else "waits for a checkpoint"


def _staged(store: Path, kind: str) -> bool:
    return any((store / kind).glob(".tmp-*"))


def final_weights(store: Path) -> str:
    """Return the weights' digest of the newest checkpoint, which must be the final one, all artifacts intact."""
    facts: dict[str, Any] = {}
    for kind in ("checkpoints", "generations", "negatives"):
        number = int((store / kind / "CURRENT").read_text())
        facts[kind] = json.loads((store / kind / f"{number:06d}" / "manifest.json").read_text())["facts"]
    assert facts["checkpoints"]["final"] and facts["generations"]["step"] == facts["negatives"]["step"]
    assert facts["generations"]["weights_sha256"] == facts["checkpoints"]["weights_sha256"]
    weights: str = facts["checkpoints"]["weights_sha256"]
    return weights
