"""What every test shares: the same examples in each run, and no network."""

import os
from collections.abc import Iterator
from typing import NoReturn

import numpy as np
import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so set before any test module is
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `hone` does: threads that spin slow each other
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each of two processes has a core

# No deadline: a busy machine is not a bug. Derandomised: a failure seen once is seen again.
settings.register_profile("hone", deadline=None, derandomize=True)
settings.load_profile("hone")


LONGEST = ("test_rank_cases.py", "test_wheel.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files that take longest come first, so that no process of several ends alone."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def _own_niceness() -> Iterator[None]:
    """An ordinary user cannot lower a niceness again: what raises it is tested in a child."""

    def refuse(_increment: int) -> NoReturn:
        raise AssertionError("a test gives all tests after it less of the cores")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "nice", refuse)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_power_cut() -> Iterator[None]:
    """Nothing here cuts the power: tests of what is flushed, and when, put a flush of their own in this one's place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(np.memmap, "flush", lambda array: None)
        yield


@pytest.fixture
def own_precision() -> Iterator[None]:
    """A process has one precision; here many runs share one."""
    from accelerate.state import AcceleratorState  # here, so that a test without torch does not load it

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
