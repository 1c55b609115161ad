"""Runs `hone train` while killing its processes at random, until it ends by itself. It does not know pytest."""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.refresher_process import RESTARTS
from retriever.durable import read_lines
from tests.stand_ins import write_tiny_data
from tests.tiny_model import write_tiny_model

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


@dataclass
class Ending:
    """How a killed run went: kills by victim and by what the run had last reported."""

    kills: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    starts: int = 0


def train_under_fire(config: Path, store: Path, victim: str, kills: int, seed: int, mean_seconds: float) -> Ending:
    """Run the training to its end, killing ``victim`` ("trainer" or "refresher") up to ``kills`` times with SIGKILL.

    A trainer whose refresher died six times in a row gives up with exit code 2; the same command goes on from there.
    Raises AssertionError if a run that is not killed fails otherwise.
    """
    generator = random.Random(seed)
    ending = Ending()
    while True:
        ending.starts += 1
        with (config.parent / "train.log").open("ab") as log:
            process = subprocess.Popen(hone("train", config, "--store", store), stdout=log, stderr=log)
        killed = _fire(process, store, victim, kills - ending.kills[victim], generator, mean_seconds, ending)
        code = process.wait()
        gave_up = code == 2 and ending.kills["refresher"] > RESTARTS
        if not killed and not gave_up:
            assert code == 0, (config.parent / "train.log").read_text()[-2000:]
            return ending


def _fire(
    process: subprocess.Popen[bytes],
    store: Path,
    victim: str,
    kills: int,
    generator: random.Random,
    mean_seconds: float,
    ending: Ending,
) -> bool:
    """Kill until the trainer is hit (True), or it ended by itself or no kill is left (False)."""
    while kills > 0:
        with suppress(subprocess.TimeoutExpired):
            process.wait(generator.expovariate(1 / mean_seconds))
            return False
        pid = process.pid if victim == "trainer" else _refresher_pid(store, process.pid)
        if pid is None:
            continue
        ending.phases[_phase(store)] += 1
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            ending.kills[victim] += 1
            kills -= 1
        if victim == "trainer":
            return True
    return False


def _refresher_pid(store: Path, trainer: int) -> int | None:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == trainer and "refresh" in (path.parent / "cmdline").read_text():
                return int(path.parent.name)
    return None


def _phase(store: Path) -> str:
    events = read_lines(store / "events.jsonl")
    last: dict[str, Any] = events[-1] if events else {"event": "start"}
    return f"{last['event']} {last['phase']}" if last["event"] == "progress" else str(last["event"])


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
