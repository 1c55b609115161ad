import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from app.rate_limit import LONGEST_WAIT, RateLimit, back_off, retry_after


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def turns(limit: RateLimit, clock: Clock, tokens: list[float]) -> list[float]:
    async def take() -> list[float]:
        found = []
        for one in tokens:
            await limit.take(one)
            found.append(clock.now - 100)
        return found

    return asyncio.run(take())


def made(requests: float | None, tokens: float | None) -> tuple[RateLimit, Clock]:
    clock = Clock()
    return RateLimit(requests, tokens, clock, clock.sleep), clock


def test_requests_are_spread_evenly() -> None:
    limit, clock = made(30, None)
    assert turns(limit, clock, [0] * 4) == [0, 2, 4, 6]


def test_tokens_are_spread_by_how_many_they_are() -> None:
    limit, clock = made(None, 600)
    assert turns(limit, clock, [100, 50, 20]) == pytest.approx([0, 10, 15])


def test_the_stricter_limit_holds() -> None:
    limit, clock = made(30, 600)
    assert turns(limit, clock, [10, 100, 10, 10]) == pytest.approx([0, 2, 12, 14])


def test_without_a_limit_nobody_waits() -> None:
    limit, clock = made(None, None)
    assert turns(limit, clock, [1e9] * 3) == [0, 0, 0]


def test_what_a_request_really_had_is_made_up_for() -> None:
    limit, clock = made(None, 600)
    turns(limit, clock, [100])
    limit.correct(-50)
    assert turns(limit, clock, [0]) == pytest.approx([5])


def test_a_pause_holds_everybody_up() -> None:
    limit, clock = made(None, None)
    limit.pause(7)
    assert turns(limit, clock, [0, 0]) == [7, 7]


def test_waits_double_are_spread_and_end_at_a_minute() -> None:
    for tries in range(1, 12):
        wait = back_off(tries)
        assert min(LONGEST_WAIT, 2 ** (tries - 1)) / 2 <= wait <= min(LONGEST_WAIT, 2 ** (tries - 1))
    assert len({back_off(3) for _ in range(20)}) > 1


def test_retry_after_is_seconds_or_a_date() -> None:
    assert (retry_after("1.5"), retry_after("-3"), retry_after(None), retry_after("soon")) == (1.5, 0.0, None, None)
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < (retry_after(soon) or 0) <= 100
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
