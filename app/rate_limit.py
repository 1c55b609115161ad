"""A limit on requests and tokens a minute, and the waits between tries.

Does not know what is asked for, nor of whom.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

Sleep = Callable[[float], Awaitable[None]]
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0


class RateLimit:
    """Lets requests through evenly, without bursts, so that no minute has more than its share; None is no limit."""

    def __init__(
        self,
        requests_a_minute: float | None,
        tokens_a_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._seconds_a_request = 60 / requests_a_minute if requests_a_minute else 0.0
        self._seconds_a_token = 60 / tokens_a_minute if tokens_a_minute else 0.0
        self._clock = clock
        self._sleep = sleep
        self._request_at = self._tokens_at = self._resumed_at = 0.0

    async def take(self, tokens: float) -> None:
        """Wait for the turn of a request of so many ``tokens``."""
        now = self._clock()
        turn = max(now, self._request_at, self._tokens_at, self._resumed_at)
        self._request_at = turn + self._seconds_a_request
        self._tokens_at = turn + tokens * self._seconds_a_token
        while (left := max(turn, self._resumed_at) - self._clock()) > 0:
            await self._sleep(left)

    def correct(self, tokens: float) -> None:
        """Take note that a request had so many tokens more than it was let through for, or less if negative."""
        self._tokens_at += tokens * self._seconds_a_token

    def pause(self, seconds: float) -> None:
        """Let nothing through for ``seconds``."""
        self._resumed_at = max(self._resumed_at, self._clock() + seconds)


def back_off(tries: int) -> float:
    """Return the seconds to wait after so many tries: twice as long each time, spread so that waiters do not meet."""
    return float(min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1)) * random.uniform(0.5, 1))


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, a number or a date; None for none or another form."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
