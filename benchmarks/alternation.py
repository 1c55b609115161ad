"""Runs contestants in turn, A B A B …, each in its own process, all others asleep meanwhile.

Does not know what they compute, nor what the seconds mean.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.environments import OURS, ROOT, python_of

THREADS = 2
NOT_INHERITED = {"OMP_WAIT_POLICY", "PYTHONPATH"}
"""Variables that would give a peer other than its default: hone's own commands set the first for themselves."""
WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""For what takes a GPU by itself where its peers are kept to the CPU."""


@dataclass(frozen=True)
class Entrant:
    """Who takes part: ``module``, say benchmarks.contestants.gemm, run in ``environment`` with ``variables`` set.

    ``settings`` are the arguments of its action "load", which is called once, before any clock that counts.
    """

    name: str
    module: str
    environment: str = OURS
    settings: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """One action's wall clock in seconds, its process's peak resident memory in bytes, its facts and its arrays."""

    seconds: float
    peak_rss: int
    facts: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]


class Contestant:
    """A running process that works only while it is asked; ``loaded`` is its answer to "load" once it was asked."""

    def __init__(self, entrant: Entrant, scratch: Path, threads: int = THREADS) -> None:
        """Start it in the checkout's root; its stderr goes to a file in ``scratch``."""
        self.entrant = entrant
        self._stderr = scratch / "stderr.txt"
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        counts = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS", "RAYON", "NUMEXPR")}
        with self._stderr.open("w") as stderr:
            self._process = subprocess.Popen(
                [python_of(entrant.environment), "-m", entrant.module, scratch],
                cwd=ROOT,
                env={**inherited, **counts, "HF_HUB_OFFLINE": "1", **entrant.variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self.versions: Mapping[str, str] = self._read()
        self.loaded: Answer | None = None

    def ask(self, action: str, **arguments: Any) -> Answer:
        """Have ``action`` done and wait for its answer. Raises RuntimeError with its last words if it died."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # the read below says why
            print(json.dumps({"do": action, **arguments}), file=self._process.stdin, flush=True)
        facts = self._read()
        arrays = {name: np.load(path) for name, path in facts.pop("arrays", {}).items()}
        return Answer(facts.pop("seconds"), facts.pop("peak_rss"), facts, arrays)

    def close(self) -> None:
        """End the process by ending its stdin."""
        assert self._process.stdin and self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self.close()
            said = self._stderr.read_text()
            last_words = said[max(0, said.rfind("Traceback")) :][:4000]
            raise RuntimeError(f"{self.entrant.name} ended with {self._process.returncode}:\n{last_words}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def started(entrants: Sequence[Entrant], threads: int = THREADS) -> Iterator[list[Contestant]]:
    """Start ``entrants`` one after the other, load each with its settings, and end them all afterwards."""
    with ExitStack() as stack:
        running = []
        for entrant in entrants:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            contestant = Contestant(entrant, scratch, threads)
            stack.callback(contestant.close)
            contestant.loaded = contestant.ask("load", **entrant.settings)
            running.append(contestant)
        yield running


def alternate(contestants: Sequence[Contestant], action: str, rounds: int, **arguments: Any) -> dict[str, list[Answer]]:
    """Ask each contestant in turn to do ``action``, ``rounds`` times over; return each name's answers in order."""
    answers: dict[str, list[Answer]] = {contestant.entrant.name: [] for contestant in contestants}
    for _ in range(rounds):
        for contestant in contestants:
            answers[contestant.entrant.name].append(contestant.ask(action, **arguments))
    return answers
