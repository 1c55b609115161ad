"""A contestant that sleeps for a living, so that tests of the frame need no model. It does not know the tests."""

import os
import time
from typing import Any

import numpy as np

from benchmarks.contest import compete

LOADED: dict[str, Any] = {}


def load(nap: float) -> dict[str, Any]:
    """Keep how long each piece of work takes, in seconds."""
    LOADED["nap"] = nap
    print("a library that prints")
    return {}


def work(value: float) -> dict[str, Any]:
    """Sleep, and return ``value`` as a fact and in an array."""
    time.sleep(LOADED["nap"])
    return {"value": value, "vectors": np.full((2, 3), value, np.float32)}


def variable(name: str) -> dict[str, Any]:
    """Return the value of an environment variable, None if it is not set."""
    return {"value": os.environ.get(name)}


def affinity() -> dict[str, Any]:
    """Return on how many cores this process may run."""
    return {"value": len(os.sched_getaffinity(0))}


def own_clock() -> dict[str, Any]:
    """Return seconds of its own counting."""
    return {"seconds": 7.0}


def fail() -> dict[str, Any]:
    """Die."""
    raise ValueError("the reason")


if __name__ == "__main__":
    compete(
        {"load": load, "work": work, "variable": variable, "affinity": affinity, "own_clock": own_clock, "fail": fail},
        ["numpy", "installed-nowhere"],
    )
