"""What the client of the request in hand may still spend: asked with the tokens that are admitted to be computed.

Does not know keys or HTTP; who sets it does.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextvars import ContextVar
from threading import Lock

from app.admission import OverloadedError

MINUTE = 60
ALLOWANCE: ContextVar[Callable[[int], None] | None] = ContextVar("allowance", default=None)
"""Called with the tokens that are to be computed; raises SpentError. None: no limit."""


class SpentError(OverloadedError):
    """More tokens than this client may spend now; in ``retry_seconds`` it may."""

    def __init__(self, message: str, retry_seconds: int) -> None:
        """``message`` says what the limit is."""
        super().__init__(message)
        self.retry_seconds = retry_seconds


def spend(tokens: int) -> None:
    """Charge ``tokens`` to whoever asks. Raises SpentError where they are too many now; nothing is charged then."""
    charge = ALLOWANCE.get()
    if charge is not None and tokens > 0:
        charge(tokens)


class TokenWindow:
    """What each key has spent within the last minute, kept by seconds: at most 60 numbers a key. For many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spent: defaultdict[str, deque[tuple[int, int]]] = defaultdict(deque)
        self._turn = Lock()

    def spend(self, key: str, tokens: int, limit: int) -> float:
        """Charge ``tokens``, at most ``limit``, to ``key`` and return 0; or charge nothing and return in how many
        seconds they may be spent.
        """
        with self._turn:
            now, spent = self._clock(), self._spent[key]
            while spent and spent[0][0] + MINUTE <= now:
                spent.popleft()
            over = sum(amount for _, amount in spent) + tokens - limit
            if over <= 0:
                second = int(now)
                before = spent.pop()[1] if spent and spent[-1][0] == second else 0
                spent.append((second, before + tokens))
                return 0
            for second, amount in spent:
                over -= amount
                if over <= 0:
                    return second + MINUTE - now
        raise ValueError(f"{tokens} tokens where {limit} may be spent at most")
