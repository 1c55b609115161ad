"""What the client of the request in hand may still spend: asked with the tokens that are admitted to be computed.

Does not know keys or HTTP; who sets it does.
"""

from collections.abc import Callable
from contextvars import ContextVar

from app.admission import OverloadedError

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
