"""Measures, while a server answers, how many of the true nearest passages its index finds.

Does not know HTTP, nor who asks.
"""

import time
from collections import deque
from queue import Empty, Full, Queue
from threading import Event, Thread

import numpy as np

from app.snapshot import Snapshot
from app.telemetry import Telemetry
from indexer.exact import exact_search
from indexer.quality import Truth
from retriever.protocols import FloatArray

K = 10
WINDOW = 200
EVERY_SECONDS = 1.0
SHARE = 0.05
"""Part of one core's time that measuring may take."""
WAIT_SECONDS = 0.2


class RecallMeter:
    """Searches some of the queries again, exactly, in a thread of its own; never keeps a request waiting.

    Takes at most one query at a time, one a second, and 5 % of a core: of large corpora fewer. The figure is the mean
    over the last 200 sampled queries of the served generation.
    """

    def __init__(self, telemetry: Telemetry, every_seconds: float = EVERY_SECONDS) -> None:
        """``telemetry`` shows hone_recall_at_k and counts hone_recall_samples."""
        self._telemetry = telemetry
        self._every_seconds = every_seconds
        self._waiting: Queue[tuple[Snapshot, FloatArray]] = Queue(maxsize=1)
        self._recalls: deque[float] = deque(maxlen=WINDOW)
        self._generation: int | None = None
        self._not_before = 0.0
        self._stop = Event()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin to measure."""
        self._thread = Thread(target=self._measure_all, name="recall-meter", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop measuring; a sample that is being measured is finished."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def offer(self, snapshot: Snapshot, queries: FloatArray) -> None:
        """Take the first of ``queries`` float32 [q, dim] as a sample, unless one was taken a moment ago."""
        if time.monotonic() < self._not_before or self._waiting.full() or not len(queries):
            return
        try:
            self._waiting.put_nowait((snapshot, np.array(queries[:1])))
        except Full:
            return
        self._not_before = time.monotonic() + self._every_seconds

    def _measure_all(self) -> None:
        while not self._stop.is_set():
            try:
                snapshot, query = self._waiting.get(timeout=WAIT_SECONDS)
            except Empty:
                continue
            started = time.thread_time()
            try:
                self.measure(snapshot, query)
            except Exception:
                self._telemetry.log.exception("recall_not_measured", generation=snapshot.generation.number)
            self._not_before = max(self._not_before, time.monotonic() + (time.thread_time() - started) / SHARE)

    def measure(self, snapshot: Snapshot, query: FloatArray) -> None:
        """Search ``query`` float32 [1, dim] by the index and exactly, and show the recall."""
        depth = min(K, len(snapshot.corpus))
        found, _ = snapshot.searcher.search(query, depth)
        truth = Truth(query, snapshot.vectors, *exact_search(query, snapshot.vectors, depth))
        if snapshot.generation.number != self._generation:
            self._generation = snapshot.generation.number
            self._recalls.clear()
        self._recalls.append(truth.recall(found, depth)[0])
        self._telemetry.recall.labels(K).set(sum(self._recalls) / len(self._recalls))
        self._telemetry.recall_samples.inc()
