"""Adopting negative sets between two steps: ready or scheduled, recorded before use, replayed after a resume.

Does not know the model or the loss.
"""

from collections.abc import Callable
from contextlib import suppress
from threading import Event
from typing import Any, Protocol

from retriever.artifacts import CURRENT, Artifact
from retriever.durable import sha256_file
from retriever.errors import CorruptError, HoneError, StoreError
from retriever.refresh_policy import RefreshConfig, Trigger, scheduled_origin
from retriever.store import Store

POLL_SECONDS = 0.1
REPORT_EVERY_POLLS = 50

Report = Callable[..., None]
"""Called as report(event, **fields): what a person or a log should know."""


class Refresher(Protocol):
    """What the trainer knows of whoever builds generations and mines negatives."""

    def marked(self, checkpoint: Artifact) -> None:
        """Take note of a checkpoint that wants a refresh; a refresher of the same process refreshes here."""
        ...

    def trouble(self) -> str | None:
        """Return why no new negative set can be expected, None while all is well."""
        ...


class StaleError(StoreError):
    """Negatives are staler than allowed and ``on_stale`` is "stop", or the refresher is gone for good."""


class Adoption:
    """Decides at each step boundary which negative set to use from there on."""

    def __init__(
        self, store: Store, config: RefreshConfig, trigger: Trigger, refresher: Refresher, report: Report, stop: Event
    ) -> None:
        """``trigger`` is that of ``config``. ``stop`` ends a wait: the boundary then adopts nothing."""
        self._store = store
        self._config = config
        self._trigger = trigger
        self._refresher = refresher
        self._report = report
        self._stop = stop
        self._recorded: list[dict[str, Any]] = []
        self._said: set[str] = set()
        self._resumed_at = 0
        self.adopted: Artifact | None = None
        self.count = 0
        self.max_staleness = 0

    def resume(self, step: int) -> None:
        """Take up the set in use before the boundary of ``step``; adoptions recorded from there on are replayed."""
        self._resumed_at = step
        recorded = self._store.adoptions()
        earlier = [record for record in recorded if record["step"] < step]
        self._recorded = [record for record in recorded if record["step"] >= step]
        self.count = len(earlier)
        if earlier:
            self.adopted = self._checked(earlier[-1])

    def at(self, step: int) -> Artifact | None:
        """Return the set to adopt before the batch of ``step`` is drawn, None to keep the one in use.

        Raises StaleError as ``on_stale`` asks.
        """
        found = self._replayed(step)
        if found is None and not self._recorded:
            wait = self._scheduled if self._config.adopt == "scheduled" else self._ready
            found = wait(step)
            if found is not None:
                self._store.record_adoption(step, found.number, digest(found))
        if found is not None:
            self.adopted = found
            self.count += 1
        if self.adopted is not None:
            self.max_staleness = max(self.max_staleness, self.staleness(step))
        return found

    def overdue(self, step: int, marked: int) -> bool:
        """Tell whether the boundary of ``step`` waits in vain unless a checkpoint is marked now.

        So it does where negatives are staler than on_stale = "wait" allows, and the last checkpoint that was marked, at
        step ``marked``, is no newer than the one behind them.
        """
        if self._config.adopt != "ready" or self._config.on_stale != "wait" or self._recorded or self.adopted is None:
            return False
        return self.staleness(step) > self._config.max_staleness and marked <= int(self.adopted.facts["step"])

    def staleness(self, step: int) -> int:
        """Return the steps trained since the checkpoint behind the negatives in use (0 before the first set)."""
        return 0 if self.adopted is None else step - int(self.adopted.facts["step"])

    def _replayed(self, step: int) -> Artifact | None:
        if self._recorded and self._recorded[0]["step"] == step:
            return self._checked(self._recorded.pop(0))
        return None

    def _checked(self, record: dict[str, Any]) -> Artifact:
        artifact = self._store.negatives.at(record["set"])
        artifact.verify()
        if digest(artifact) != record["sha256"]:
            raise CorruptError(f"{artifact.path}: not the negative set that was adopted at step {record['step']}")
        return artifact

    def _newest(self, after: int) -> Artifact | None:
        number = self._store.negatives.pointed(CURRENT)
        if number is None or number <= after:
            return None
        found = self._store.negatives.intact(CURRENT, self._say)
        return found if found is not None and found.number > after else None

    def _ready(self, step: int) -> Artifact | None:
        after = -1 if self.adopted is None else self.adopted.number
        found = self._newest(after)
        stale = step - (0 if self.adopted is None else int(self.adopted.facts["step"]))
        if found is not None or stale <= self._config.max_staleness:
            self._say(self._refresher.trouble())
            return found
        bound = f"more than max_staleness = {self._config.max_staleness}"
        if self._config.on_stale == "stop":
            raise StaleError(
                f"negatives are {stale} steps stale, {bound}; "
                "start `hone refresh` or raise [refresh] max_staleness, then resume"
            )
        self._say(self._refresher.trouble() or f"negatives are stale by {bound} steps")
        return self._wait(lambda: self._newest(after), step) if self._config.on_stale == "wait" else None

    def _scheduled(self, step: int) -> Artifact | None:
        origin = scheduled_origin(self._config, self._trigger, step)
        if origin is None:
            return None
        if origin < self._resumed_at and not self._may_come(origin):
            self._say(f"step {step} adopts nothing: the run before did not mark its checkpoint of step {origin}")
            return None
        return self._wait(lambda: self._mined_at(origin), step)

    def _may_come(self, origin: int) -> bool:
        """Tell whether a set of step ``origin`` is there, or what it will be mined from."""
        if self._mined_at(origin) is not None:
            return True
        for kept in (self._store.checkpoints, self._store.generations):
            for number in kept.numbers():
                with suppress(HoneError):  # damaged, or just removed by the refresher
                    facts = kept.at(number).facts
                    if facts["step"] == origin and facts.get("refresh", True):
                        return True
        return False

    def _mined_at(self, origin: int) -> Artifact | None:
        number = self._store.negatives.pointed(CURRENT)
        while number is not None and number >= 0:
            found = self._store.negatives.at(number)
            if found.facts["step"] == origin:
                found.verify()
                return found
            if found.facts["step"] < origin:
                return None
            number -= 1
        return None

    def _wait(self, look: Callable[[], Artifact | None], step: int) -> Artifact | None:
        polls = 0
        while not self._stop.is_set():
            found = look()
            if found is not None:
                return found
            trouble = self._refresher.trouble()
            if trouble is not None:
                raise StaleError(f"step {step} waits for negatives that cannot come: {trouble}")
            if polls % REPORT_EVERY_POLLS == 1:
                self._report("waiting", step=step, seconds=round(polls * POLL_SECONDS, 1))
            self._stop.wait(POLL_SECONDS)
            polls += 1
        return None

    def _say(self, message: str | None) -> None:
        """Warn once: the same trouble is met at every step."""
        if message is not None and message not in self._said:
            self._report("warning", message=message)
            self._said.add(message)


def digest(artifact: Artifact) -> str:
    """Return the SHA-256 of the manifest, which names the SHA-256 of every file."""
    return sha256_file(artifact.path / "manifest.json")
