"""Work for a model: admitted whole or refused, joined by tokens into batches, computed by one supervised thread.

Does not know models, texts or HTTP.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any

from structlog.typing import FilteringBoundLogger

from retriever.errors import HoneError, InputError
from retriever.protocols import FloatArray

WINDOW = 256
"""Waiting items that a batch is chosen from."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
STALL_SECONDS = 60.0
"""Seconds on one batch after which the worker counts as hung."""


class TooManyTokensError(InputError):
    """More tokens than the queue can ever hold."""


class OverloadedError(HoneError):
    """The queue is full: the same request may be admitted later."""


class NotComputedError(HoneError):
    """The work was admitted and not done: its deadline passed, or the worker died. It may be tried again."""


class ComputeError(HoneError):
    """The model failed on one input, the one at ``place`` of what was asked, and on that input alone."""

    def __init__(self, place: int, cause: Exception) -> None:
        super().__init__(f"input {place} cannot be computed ({type(cause).__name__}); leave it out")
        self.place, self.cause = place, cause

    def at(self, place: int) -> "ComputeError":
        """Return the same of the ``place`` that the input has where more, or other ones, were asked."""
        return ComputeError(place, self.cause)


@dataclass(frozen=True)
class AdmissionConfig:
    """Limits: tokens of a batch of either class, tokens that may wait, seconds until an answer.

    Raises InputError for limits under which nothing could ever be computed.
    """

    batch_tokens: int = 2048
    patient_batch_tokens: int = 512
    queue_tokens: int = 1 << 20
    deadline_seconds: float = 30.0
    patient_deadline_seconds: float = 600.0

    def __post_init__(self) -> None:
        """Check each limit and how they agree."""
        for name in ("batch_tokens", "patient_batch_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: a batch needs at least one token")
            if self.queue_tokens < getattr(self, name):
                raise InputError(f"queue_tokens = {self.queue_tokens}: less than one batch ({name})")
        for name in ("deadline_seconds", "patient_deadline_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} = {getattr(self, name)}: nothing could be answered in time")

    def check_longest(self, tokens: int) -> None:
        """Raise InputError if an input of ``tokens``, the longest that a model reads, could never be admitted."""
        if tokens > self.queue_tokens:
            raise InputError(f"queue_tokens = {self.queue_tokens}: the model reads {tokens} tokens of a text; raise it")


@dataclass(frozen=True, eq=False)
class Lane:
    """What may be computed together: ``compute`` takes items and returns one result for each."""

    compute: Callable[[Sequence[Any]], Sequence[Any] | FloatArray]


@dataclass(frozen=True)
class Done:
    """Results in the order of the items, and seconds in the queue and from the first batch to the last."""

    results: Sequence[Any]
    queue_seconds: float
    compute_seconds: float


@dataclass(eq=False)
class _Request:
    lane: Lane
    items: Sequence[Any]
    tokens: Sequence[int]
    deadline: float
    arrived: float
    results: list[Any]
    left: int
    waiting_tokens: int
    future: "Future[Done]" = field(default_factory=Future)
    context: Context = field(default_factory=copy_context)  # log lines on its inputs name who asked
    started: float | None = None


_Entry = tuple[_Request, int]


def choose(lengths: Sequence[int], budget: int) -> list[int]:
    """Return the positions of ``lengths`` to compute with the first: those nearest to its length.

    Their number times the longest of them stays within ``budget``, unless the first alone exceeds it; none is more
    than twice as long as the first, nor less than half, give or take 16 tokens.
    """
    anchor = longest = lengths[0]
    chosen = [0]
    for place in sorted(range(1, len(lengths)), key=lambda place: abs(lengths[place] - anchor)):
        length = lengths[place]
        alike = length <= 2 * anchor + 16 and anchor <= 2 * length + 16
        if alike and (len(chosen) + 1) * max(longest, length) <= budget:
            longest = max(longest, length)
            chosen.append(place)
    return chosen


class Admission:
    """The queue before one model thread, and that thread.

    Two classes: *patient* work is taken only while no other waits, in smaller batches, so that it holds up nobody for
    long. A batch that fails is halved until the input that fails is alone: it gets the error, the others their
    results. Whatever ends the thread itself fails the batch that it worked on; after a pause it goes on.
    """

    def __init__(
        self,
        config: AdmissionConfig,
        logger: FilteringBoundLogger,
        computed: Callable[[int, float], None] = lambda tokens, seconds: None,
        charge: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        """``computed`` is told tokens and seconds of each batch.

        ``charge`` is told the tokens of each request that there is room for, and may refuse it: what it raises, the
        caller gets.
        """
        self.config = config
        self.problem = ""
        self.queued_tokens = 0
        self._logger = logger
        self._computed = computed
        self._charge = charge
        self._waiting: dict[bool, deque[_Entry]] = {False: deque(), True: deque()}
        self._changed = Condition()
        self._stopping = False
        self._in_hand: list[_Entry] = []
        self._began: float | None = None
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin to compute."""
        self._stopping, self.problem = False, ""
        self._thread = Thread(target=self._live, name="model", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the batch in hand; what waits gets NotComputedError."""
        with self._changed:
            self._stopping, self.problem = True, "the server stops"
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        self._fail([entry for line in self._waiting.values() for entry in line], self.problem)

    @property
    def health(self) -> str:
        """Why nothing is computed at the moment; empty if all is well."""
        began = self._began
        if began is not None and time.monotonic() - began > STALL_SECONDS:
            return f"the model has been busy with one batch for more than {STALL_SECONDS:.0f} s"
        return self.problem

    async def compute(self, lane: Lane, items: Sequence[Any], tokens: Sequence[int], patient: bool = False) -> Done:
        """Compute ``items`` of ``tokens`` tokens each.

        Raises TooManyTokensError if they can never be admitted and OverloadedError if they cannot now; NotComputedError
        once their deadline has passed or if the worker dies; else what ``charge`` raised, or ``lane`` for the first bad
        item.
        """
        request = self._admit(lane, items, tokens, patient)
        try:
            async with asyncio.timeout(request.deadline - time.monotonic()):
                return await asyncio.wrap_future(request.future)
        except TimeoutError as error:
            waited = time.monotonic() - request.arrived
            raise NotComputedError(f"not computed within {waited:.1f} s; try again later, or send less") from error
        finally:
            self._give_up(request)

    def _admit(self, lane: Lane, items: Sequence[Any], tokens: Sequence[int], patient: bool) -> _Request:
        tokens = [max(1, count) for count in tokens]
        total, now, config = sum(tokens), time.monotonic(), self.config
        if total > config.queue_tokens:
            raise TooManyTokensError(
                f"{total} tokens in one request, the limit is {config.queue_tokens}; send it in parts"
            )
        seconds = config.patient_deadline_seconds if patient else config.deadline_seconds
        request = _Request(lane, items, tokens, now + seconds, now, [None] * len(items), len(items), total)
        with self._changed:
            if self.problem:
                raise NotComputedError(self.problem)
            if self.queued_tokens + total > config.queue_tokens:
                raise OverloadedError(
                    f"{self.queued_tokens} tokens wait already, the limit is {config.queue_tokens}; try again later"
                )
            self._charge(total)  # under the lock, so that what is charged is admitted
            if not items:
                request.future.set_result(Done([], 0.0, 0.0))
            self.queued_tokens += total
            self._waiting[patient].extend((request, place) for place in range(len(items)))
            self._changed.notify()
        return request

    def _give_up(self, request: _Request) -> None:
        """Let the items of ``request`` that still wait count no longer; they are passed over when their turn comes."""
        request.future.cancel()
        with self._changed:
            self.queued_tokens -= request.waiting_tokens
            request.waiting_tokens = 0

    def _live(self) -> None:
        """Work until told to stop, whatever happens: the supervisor of ``_work``."""
        pause = FIRST_PAUSE
        while not self._stopping:
            began = time.monotonic()
            try:
                self._work()
            except BaseException as error:
                self._logger.exception("model_worker_died", reason=repr(error))
                with self._changed:
                    self.problem = f"the model's worker died ({type(error).__name__}) and is being started again"
                self._fail(self._in_hand, self.problem)
                self._began = None
                pause = FIRST_PAUSE if time.monotonic() - began > LONGEST_PAUSE else min(2 * pause, LONGEST_PAUSE)
                with self._changed:
                    if not self._changed.wait_for(lambda: self._stopping, pause):
                        self.problem = ""

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or any(self._waiting.values()))
                if self._stopping:
                    return
                self._in_hand = self._take()
            if self._in_hand:
                self._began = time.monotonic()
                self._compute(self._in_hand)
                tokens = sum(request.tokens[place] for request, place in self._in_hand)
                self._computed(tokens, time.monotonic() - self._began)
                self._in_hand, self._began = [], None

    def _take(self) -> list[_Entry]:
        """Remove the next batch from what waits; [] if what was looked at is no longer wanted."""
        now = time.monotonic()
        patient = not self._waiting[False]
        line = self._waiting[patient]
        seen = [line.popleft() for _ in range(min(WINDOW, len(line)))]
        live = [entry for entry in seen if not entry[0].future.done() and entry[0].deadline > now]
        if not live:
            return []
        lane = live[0][0].lane
        places = [place for place, entry in enumerate(live) if entry[0].lane is lane]
        budget = self.config.patient_batch_tokens if patient else self.config.batch_tokens
        lengths = [live[place][0].tokens[live[place][1]] for place in places]
        chosen = {places[position] for position in choose(lengths, budget)}
        line.extendleft(entry for place, entry in reversed([*enumerate(live)]) if place not in chosen)
        taken = [live[place] for place in sorted(chosen)]
        for request, place in taken:
            request.waiting_tokens -= request.tokens[place]
            self.queued_tokens -= request.tokens[place]
            request.started = request.started or now
        return taken

    def _compute(self, entries: list[_Entry]) -> None:
        entries = [entry for entry in entries if not entry[0].future.done()]
        if not entries:
            return
        lane = entries[0][0].lane
        try:
            results = lane.compute([request.items[place] for request, place in entries])
            if len(results) != len(entries):
                raise ValueError(f"{len(results)} results for {len(entries)} items")
        except Exception as error:  # noqa: BLE001  # whatever it is, it is told to the caller of that input
            if len(entries) == 1:
                self._refuse(entries[0], error)
            else:
                half = len(entries) // 2
                self._compute(entries[:half])
                self._compute(entries[half:])
            return
        for (request, place), result in zip(entries, results, strict=True):
            request.results[place] = result
            request.left -= 1
            if request.left == 0:
                self._answer(request)

    def _answer(self, request: _Request) -> None:
        now = time.monotonic()
        started = request.started or now
        with suppress(InvalidStateError):  # given up in this moment
            request.future.set_result(Done(request.results, started - request.arrived, now - started))

    def _refuse(self, entry: _Entry, error: Exception) -> None:
        request, place = entry
        request.context.run(self._logger.warning, "input_failed", place=place, reason=repr(error))
        if not isinstance(error, HoneError):
            error = ComputeError(place, error)
        with suppress(InvalidStateError):
            request.future.set_exception(error)

    def _fail(self, entries: Sequence[_Entry], why: str) -> None:
        for request, _ in entries:
            with suppress(InvalidStateError):
                request.future.set_exception(NotComputedError(f"{why}; try again"))
