"""Units done per second and time left, reported at a bounded pace.

Does not know what the units are, nor who reads the reports.
"""

import time
from collections.abc import Callable
from typing import Any

Report = Callable[..., None]

REPORT_SECONDS = 1.0


class Meter:
    """Turns (phase, done, total) into "progress" events with rate and ETA, at most one a second and phase end."""

    def __init__(self, report: Report) -> None:
        """``report`` is called as report("progress", phase, done, total, rate, eta_seconds)."""
        self._report = report
        self._phase = ""
        self._started = self._last = 0.0
        self._done = -1

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Take note that ``done`` of ``total`` units of ``phase`` are finished."""
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._started, self._last, self._done = phase, now, now, -1
        ends = done >= total and self._done < done
        if now - self._last < REPORT_SECONDS and not ends:
            return
        self._last, self._done = now, done
        rate = done / max(now - self._started, 1e-6)
        fields: dict[str, Any] = {"phase": phase, "done": done, "total": total}
        if rate > 0 and now - self._started > REPORT_SECONDS:
            fields |= {"rate": round(rate, 1), "eta_seconds": round((total - done) / rate, 1)}
        self._report("progress", **fields)

    def phase(self, name: str) -> Callable[[int, int], None]:
        """Return a callable of (done, total) for one phase."""
        return lambda done, total: self(name, done, total)
