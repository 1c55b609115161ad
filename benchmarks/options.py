"""The flags that every benchmark takes: which data, and how much of it how often.

Does not know any benchmark.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

ROUNDS, QUICK_ROUNDS = 5, 3


@dataclass(frozen=True)
class Options:
    """``data`` is a BEIR folder; ``quick`` asks for few texts and three rounds, enough to see a regression."""

    data: Path
    quick: bool
    rounds: int


def parse(name: str, claim: str) -> Options:
    """Read the command line of ``python -m benchmarks.NAME``; ``claim`` is what --help says of it."""
    return options_of(parser_for(name, claim).parse_args())


def parser_for(name: str, claim: str) -> ArgumentParser:
    """Return a parser of the flags that every benchmark takes, for one that adds its own."""
    parser = ArgumentParser(prog=f"python -m benchmarks.{name}", description=claim)
    parser.add_argument("--data", type=Path, required=True, help="a data set in BEIR layout")
    parser.add_argument("--quick", action="store_true", help="few texts and three rounds")
    parser.add_argument("--rounds", type=int, help="how often each contestant has its turn")
    return parser


def options_of(given: Namespace) -> Options:
    """Return the options among what was parsed."""
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    return Options(given.data, given.quick, rounds)
