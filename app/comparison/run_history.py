"""What the event log of a training run tells: seconds trained, waited and refreshed, which refreshes came, how stale.

Does not know stores, processes or who reads the figures.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TRAINER = "trainer"
FOUND = ("generation_published", "generation_reused")

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Refresh:
    """A negative set that the trainer adopted before ``step``, mined with the weights of step ``origin``.

    ``seconds`` are on the run's clock; ``begun`` is when its generation was begun (None: not in the log).
    """

    origin: int
    step: int
    begun: float | None
    seconds: float


@dataclass(frozen=True)
class Aged:
    """What the trainer's probe of its negatives told at ``step``, as ``retriever.staleness.Staleness`` means it."""

    step: int
    overlap: float
    drift: float
    easy: float


@dataclass(frozen=True)
class Costs:
    """Seconds of a run: ``training`` and ``waiting`` make up its clock, the others passed beside, in the refresher."""

    training: float
    waiting: float
    encoding: float
    indexing: float
    mining: float


class Clock:
    """Seconds on which a run is compared: from the trainer's first sign of life in each of its sessions to its last.

    What lies between two sessions of an interrupted run does not count; steps that are trained again count again.
    """

    def __init__(self, events: Sequence[Event], starts: Sequence[float]) -> None:
        """``events`` in the order of the log, ``starts`` when each session's process was started, in Unix seconds."""
        self._first: list[float] = []
        self._before = [0.0]
        for session in sessions(events, starts):
            times = [event["time"] for event in session if event.get("source") == TRAINER]
            if times:
                self._first.append(times[0])
                self._before.append(self._before[-1] + times[-1] - times[0])

    @property
    def total(self) -> float:
        """Seconds in all."""
        return self._before[-1]

    def at(self, time: float) -> float:
        """Return how many seconds had passed at Unix ``time``."""
        session = max(0, bisect_right(self._first, time) - 1)
        if not self._first:
            return 0.0
        return min(max(0.0, time - self._first[session]) + self._before[session], self._before[session + 1])


def sessions(events: Sequence[Event], starts: Sequence[float]) -> Iterator[list[Event]]:
    """Yield the events of each session, the time of whose start is given."""
    for number, start in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else float("inf")
        yield [event for event in events if start <= event["time"] < end]


def seconds_of_checkpoints(events: Sequence[Event], clock: Clock) -> dict[int, float]:
    """Return by number how many seconds had passed when each checkpoint was published."""
    seconds: dict[int, float] = {}
    for event in events:
        if event["event"] == "checkpoint":
            seconds[event["number"]] = clock.at(event["time"])
        elif event["event"] == "resumed":  # a kill came between its publication and the report of it
            seconds.setdefault(event["checkpoint"], clock.at(event["time"]))
    return seconds


def refreshes(events: Sequence[Event], clock: Clock) -> list[Refresh]:
    """Return the adoptions in the order of steps; of one that a resumed run replayed, the replay."""
    begun: dict[int, float] = {}
    adopted: dict[int, Refresh] = {}
    for event in events:
        if event["event"] == "build_started":
            begun.setdefault(event["step"], clock.at(event["time"]))
        elif event["event"] == "adopted":
            step, origin = event["step"], event["step"] - event["staleness"]
            adopted[step] = Refresh(origin, step, begun.get(origin), clock.at(event["time"]))
    return [adopted[step] for step in sorted(adopted)]


def aged(events: Sequence[Event]) -> list[Aged]:
    """Return the measures of staleness in the order of steps; of one that a resumed run took again, the later."""
    told = {event["step"]: event for event in events if event["event"] == "staleness"}
    return [Aged(step, *(told[step][name] for name in ("overlap", "drift", "easy"))) for step in sorted(told)]


def costs(events: Sequence[Event], starts: Sequence[float]) -> Costs:
    """Return where the seconds went; a generation that was not finished is not in it."""
    waiting = sum(_waited(session) for session in sessions(events, starts))
    built = [event["seconds"] for event in events if event["event"] == "generation_published"]
    encoding = sum(seconds.get("encode", 0.0) for seconds in built)
    return Costs(
        training=Clock(events, starts).total - waiting,
        waiting=waiting,
        encoding=encoding,
        indexing=sum(sum(seconds.values()) for seconds in built) - encoding,
        mining=_mining(events),
    )


def _waited(session: Sequence[Event]) -> float:
    """Add up the trainer's waits: each is told as "waiting" with its seconds so far, and ends with another event."""
    told = [event for event in session if event.get("source") == TRAINER]
    waited, since = 0.0, None
    for place, event in enumerate(told):
        if event["event"] == "waiting" and since is None:
            since = event["time"] - event["seconds"]
        ends = event["event"] in ("adopted", "step", "checkpoint") or place == len(told) - 1
        if ends and since is not None:
            waited += event["time"] - since
            since = None
    return waited


def _mining(events: Sequence[Event]) -> float:
    seconds, since = 0.0, None
    for event in events:
        if event["event"] in FOUND:
            since = event["time"]
        elif event["event"] == "negatives_published" and since is not None:
            seconds += event["time"] - since
            since = None
    return seconds
