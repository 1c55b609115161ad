"""The flags that every benchmark takes: which data, and how much of it how often.

Does not know any benchmark.
"""

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROUNDS, QUICK_ROUNDS = 5, 3


@dataclass(frozen=True)
class Options:
    """``data`` is a BEIR folder; ``quick`` asks for few texts and three rounds, enough to see a regression.

    ``part`` names what is measured of a benchmark that has parts, None for all.
    """

    data: Path
    quick: bool
    rounds: int
    part: str | None = None


def parse(name: str, claim: str, parts: Sequence[str] = ()) -> Options:
    """Read the command line of ``python -m benchmarks.NAME``; ``claim`` is what --help says of it."""
    parser = ArgumentParser(prog=f"python -m benchmarks.{name}", description=claim)
    parser.add_argument("--data", type=Path, required=True, help="a data set in BEIR layout")
    parser.add_argument("--quick", action="store_true", help="few texts and three rounds")
    parser.add_argument("--rounds", type=int, help="how often each contestant has its turn")
    if parts:
        parser.add_argument("--part", choices=parts, help="measure this alone")
    given = parser.parse_args()
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    return Options(given.data, given.quick, rounds, getattr(given, "part", None))
