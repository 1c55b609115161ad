"""Progress of several trainings, one after the other: where the present one is, how fast, and when all will be done.

Does not know what is trained or where reports go.
"""

import time
from typing import Any

from app.progress import REPORT_SECONDS, Report

SHOWN = {"adopted", "generation_published", "warning", "resumed", "run_done"}


class Pace:
    """Turns a training's events into "progress" with rate and ETA of everything that is left to do."""

    def __init__(self, runs: int, steps: int, report: Report) -> None:
        """Count on ``runs`` trainings of ``steps`` steps each."""
        self._left = runs
        self._steps = steps
        self._report = report
        self._name = ""
        self._took: list[float] = []
        self._started = self._last = 0.0
        self._rate = 0.0
        self._phase = ("", 0.0, 0)

    def begins(self, name: str) -> None:
        """Take note that the next training begins."""
        self._name, self._started, self._last = name, time.monotonic(), 0.0
        self._left -= 1

    def ends(self) -> None:
        """Take note that the training is done and measured."""
        self._took.append(time.monotonic() - self._started)

    def report(self, event: str, **fields: Any) -> None:
        """Take in one event of the training; those that a person should know go on."""
        if event in SHOWN:
            self._report(event, **({"run": self._name} | fields))
        elif event == "step":
            self._rate = fields["steps_per_second"]
            self._progress(f"train {self._name}", fields["step"], fields["of"], (self._rate, fields["step"]))

    def measures(self, phase: str, done: int, total: int) -> None:
        """Take note of progress in measuring."""
        now = time.monotonic()
        if phase != self._phase[0] or done < self._phase[2]:
            self._phase = (phase, now, done)
        _, since, before = self._phase
        rate = (done - before) / (now - since) if now > since else 0.0
        self._progress(f"{phase}, {self._name}", done, total, (rate, self._steps))

    def _progress(self, phase: str, done: int, total: int, pace: tuple[float, int]) -> None:
        """Report at a bounded pace; ``pace`` is the rate of the phase and the step that the training has come to."""
        now = time.monotonic()
        if now - self._last < REPORT_SECONDS and done < total:
            return
        self._last = now
        fields: dict[str, Any] = {"phase": phase, "done": done, "total": total}
        left = self._seconds_left(now, pace[1])
        if left is not None:
            fields |= {"rate": round(pace[0], 2), "eta_seconds": round(left)}
        self._report("progress", **fields)

    def _seconds_left(self, now: float, step: int) -> float | None:
        """Return the seconds until all is done: by whole trainings where one is done, else by steps alone."""
        if self._took:
            whole = sum(self._took) / len(self._took)
            return max(0.0, whole - (now - self._started)) + self._left * whole
        if not self._rate:
            return None
        return (self._steps - step + self._left * self._steps) / self._rate
