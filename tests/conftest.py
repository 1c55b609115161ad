"""What every test shares: the same examples in each run, and no network."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so set before any test module is
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `hone` does: threads that spin slow each other

# No deadline: a busy machine is not a bug. Derandomised: a failure seen once is seen again.
settings.register_profile("hone", deadline=None, derandomize=True)
settings.load_profile("hone")


@pytest.fixture
def own_precision() -> Iterator[None]:
    """A process has one precision; here many runs share one."""
    from accelerate.state import AcceleratorState  # here, so that a test without torch does not load it

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def own_process(own_precision: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run train as in a process of its own. What survives a power cut is for test_durable.py."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
