import time
from collections.abc import Callable
from typing import Any

import pytest

from app.progress import Meter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let time pass only when told."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    return passes


def collected(events: list[dict[str, Any]]) -> Callable[..., None]:
    def report(event: str, **fields: Any) -> None:
        assert event == "progress"
        events.append(fields)

    return report


def test_at_most_one_report_a_second_and_one_at_the_end(clock: Callable[[float], None]) -> None:
    events: list[dict[str, Any]] = []
    meter = Meter(collected(events))
    for done in range(1001):
        meter("encode", done, 1000)
        clock(0.01)
    meter("encode", 1000, 1000)
    seen = [event["done"] for event in events]
    assert seen[-1] == 1000 and seen.count(1000) == 1
    assert len(seen) == pytest.approx(10, abs=1)


def test_rate_and_time_left_are_those_of_the_phase(clock: Callable[[float], None]) -> None:
    events: list[dict[str, Any]] = []
    meter = Meter(collected(events))
    meter("encode", 0, 100)
    clock(4)
    meter("encode", 40, 100)
    assert events[-1] == {"phase": "encode", "done": 40, "total": 100, "rate": 10.0, "eta_seconds": 6.0}
    clock(100)
    mine = meter.phase("mine")
    mine(0, 50)
    clock(5)
    mine(10, 50)
    assert events[-1] == {"phase": "mine", "done": 10, "total": 50, "rate": 2.0, "eta_seconds": 20.0}


def test_no_rate_is_guessed_of_the_first_moment(clock: Callable[[float], None]) -> None:
    events: list[dict[str, Any]] = []
    meter = Meter(collected(events))
    meter("index", 5, 5)
    assert events == [{"phase": "index", "done": 5, "total": 5}]
    clock(3)
    meter("check", 0, 1)
    clock(3)
    meter("check", 0, 1)
    assert events[-1] == {"phase": "check", "done": 0, "total": 1}, "nothing done: no rate, and no division by it"
