"""The side of a contestant that trains: so many steps as it is asked for, and a pause in between.

Runs in every peer's environment, so it needs the standard library alone; does not know who trains what.
"""

from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

from benchmarks.contest import compete


class Pace:
    """Answers tasks on a thread of its own and holds back the training, which has the main thread."""

    def __init__(self, packages: Sequence[str], gpu_peak: Callable[[], int]) -> None:
        """Begin to answer, first with the versions of ``packages``; ``gpu_peak`` returns bytes, 0 without a GPU."""
        self._gpu_peak = gpu_peak
        self._settings: SimpleQueue[Mapping[str, Any]] = SimpleQueue()
        self._asked: SimpleQueue[int | None] = SimpleQueue()
        self._losses: SimpleQueue[list[float]] = SimpleQueue()
        self._left, self._found = 0, list[float]()
        Thread(target=self._answer, args=(packages,), daemon=True).start()

    def settings(self) -> Mapping[str, Any]:
        """Return the arguments of "load"; its answer waits until the training is about to make its first step."""
        return self._settings.get()

    def ready(self) -> None:
        """Say that the first step comes next, and wait until steps are asked for."""
        self._losses.put(self._found)
        asked = self._asked.get()
        if asked is None:
            raise SystemExit  # nobody will ask again
        self._left, self._found = asked, []

    def stepped(self, loss: float) -> None:
        """Note a step's loss; after the last one asked for, answer and wait."""
        self._found.append(loss)
        self._left -= 1
        if not self._left:
            self.ready()

    def _answer(self, packages: Sequence[str]) -> None:
        def load(**settings: Any) -> Mapping[str, Any]:
            self._settings.put(settings)
            self._losses.get()
            return {}

        def work(steps: int) -> Mapping[str, Any]:
            self._asked.put(steps)
            return {"losses": self._losses.get(), "gpu_peak": self._gpu_peak()}

        compete({"load": load, "work": work}, packages)
        self._asked.put(None)
