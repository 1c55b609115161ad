from typing import Any

import pytest

from app.comparison import pace as module
from app.comparison.pace import Pace


class Clock:
    """Seconds that only a test lets pass."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def collecting(said: list[tuple[str, dict[str, Any]]]) -> Any:
    def report(event: str, **fields: Any) -> None:
        said.append((event, fields))

    return report


def test_before_a_training_is_done_steps_alone_tell_how_long(clock: Clock) -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    pace = Pace(3, 100, collecting(said))
    pace.begins("static, seed 1 (1 of 3)")
    clock.now += 20
    pace.report("step", step=40, of=100, steps_per_second=2.0)
    assert said == [
        (
            "progress",
            {"phase": "train static, seed 1 (1 of 3)", "done": 40, "total": 100, "rate": 2.0, "eta_seconds": 130},
        )
    ]


def test_afterwards_whole_trainings_do(clock: Clock) -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    pace = Pace(3, 100, collecting(said))
    pace.begins("a")
    clock.now += 80
    pace.ends()
    pace.begins("b")
    clock.now += 30
    pace.measures("encode", 500, 9000)
    clock.now += 10
    pace.measures("encode", 1500, 9000)
    expected = {"phase": "encode, b", "done": 1500, "total": 9000, "rate": 100.0, "eta_seconds": 40 + 80}
    assert said[-1] == ("progress", expected)


def test_reports_come_at_a_bounded_pace_and_news_at_once(clock: Clock) -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    pace = Pace(1, 100, collecting(said))
    pace.begins("a")
    for step in range(1, 11):
        clock.now += 0.25
        pace.report("step", step=step, of=100, steps_per_second=4.0)
        pace.report("progress", phase="encode", done=1, total=2)
    assert [fields["done"] for _, fields in said] == [1, 5, 9]
    pace.report("adopted", step=10, staleness=3)
    assert said[-1] == ("adopted", {"run": "a", "step": 10, "staleness": 3})
