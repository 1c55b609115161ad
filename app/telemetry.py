"""What the server tells of itself: Prometheus metrics in a registry of its own and log lines in JSON.

Of several processes behind one port each can tell for all: they share a folder, as prometheus_client has it.
Does not know routes, nor where its numbers come from.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from structlog.typing import FilteringBoundLogger

from miner.filters import REASONS

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable, read as prometheus_client is imported: the folder that processes behind one port share."""
Over = Literal["mostrecent", "sum"]
"""How the values of several processes become one: the last that was set, or their sum."""
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TOKEN_BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)


def json_log(stream: TextIO) -> FilteringBoundLogger:
    """Return a logger that writes one JSON object a line to ``stream``, with what the request's context binds."""
    log: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(stream),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
    )
    return log


def log_libraries(stream: TextIO) -> None:
    """Let what libraries warn of leave as JSON lines on ``stream`` as well, from now on and in the whole process.

    Those that were imported with a way of their own to print lose it.
    """
    logging.captureWarnings(True)
    for name in logging.root.manager.loggerDict:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.root.handlers[:] = [_Lines(json_log(stream))]


class _Lines(logging.Handler):
    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        tell = self._log.error if record.levelno >= logging.ERROR else self._log.warning  # a library may have its own
        said: dict[str, object] = {"library": record.name, "exc_info": record.exc_info}
        try:
            said["said"] = record.getMessage()
        except (KeyError, TypeError, ValueError) as error:  # its arguments do not fit its text: the library goes on
            said |= {"said": str(record.msg), "exc_info": error}
        tell("library_said", **{name: value for name, value in said.items() if value})


class Telemetry:
    """The metrics and the log of one server."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Log to ``stream``, by default to standard error."""
        self.log = json_log(stream or sys.stderr)
        self.registry = CollectorRegistry()
        self._shared = MULTIPROCESS in os.environ
        self._watched: list[tuple[Gauge, Callable[[], float]]] = []
        self._tables: list[_Table] = []
        if not self._shared:
            ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "hone_requests", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "hone_request_seconds",
            "Time to answer a request.",
            ["route"],
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.encoded = Counter("hone_encoded_texts", "Texts encoded.", ["input_type"], registry=self.registry)
        self.mined = Counter(
            "hone_mined_negatives", "Negatives that requests and jobs have mined.", registry=self.registry
        )
        self.filtered = Counter(
            "hone_filtered_negatives",
            "Candidates that mining filtered away, by the first reason.",
            ["reason"],
            registry=self.registry,
        )
        for reason in REASONS:
            self.filtered.labels(reason)
        self.batch_tokens = Histogram(
            "hone_batch_tokens", "Tokens of a batch of the model.", buckets=TOKEN_BUCKETS, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "hone_batch_seconds", "Time to compute a batch.", buckets=SECONDS_BUCKETS, registry=self.registry
        )
        self.recall = Gauge(
            "hone_recall_at_k",
            "Share of the true first k that the index finds, over the last sampled queries.",
            ["k"],
            registry=self.registry,
            multiprocess_mode="livemostrecent",
        )
        self.recall_samples = Counter("hone_recall_samples", "Queries sampled for recall.", registry=self.registry)
        self.swaps = Counter("hone_swaps", "Attempts to swap the snapshot.", ["result"], registry=self.registry)
        for result in ("loaded", "failed"):
            self.swaps.labels(result)

    def count_swap(self, result: str) -> None:
        """Count an attempt to swap the snapshot that was "loaded" or "failed"."""
        self.swaps.labels(result).inc()

    def count_mined(self, negatives: int, filtered: Mapping[str, int]) -> None:
        """Count what was mined, and by the miner's REASONS what was filtered away."""
        self.mined.inc(negatives)
        for reason in REASONS:
            self.filtered.labels(reason).inc(filtered.get(reason, 0))

    def count_batch(self, tokens: int, seconds: float) -> None:
        """Count a batch that the model computed."""
        self.batch_tokens.observe(tokens)
        self.batch_seconds.observe(seconds)

    def watch(self, name: str, text: str, read: Callable[[], float], over: Over = "mostrecent") -> None:
        """Show a gauge whose value is read at each scrape; NaN stands for what is not known.

        Of other processes behind the same port the value is the one at their last ``refresh``.
        """
        if not self._shared:
            Gauge(name, text, registry=self.registry).set_function(read)
            return
        mode: Literal["livesum", "livemostrecent"] = "livesum" if over == "sum" else "livemostrecent"
        self._watched.append((Gauge(name, text, registry=self.registry, multiprocess_mode=mode), read))

    def watch_each(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]) -> None:
        """Show a gauge with one value for each key that ``read`` gives at a scrape, the same in all processes."""
        self._tables.append(_Table(name, text, label, read))
        self.registry.register(self._tables[-1])

    def refresh(self) -> None:
        """Let other processes know the values of this one's gauges; to be called every second or so."""
        for gauge, read in self._watched:
            gauge.set(read())

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format, those of all processes behind the port."""
        if not self._shared:
            return generate_latest(self.registry)
        self.refresh()
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # prometheus_client annotates it in part
        for table in self._tables:
            registry.register(table)
        return generate_latest(registry)


def worker_is_gone(pid: int) -> None:
    """Forget the gauges of a process that shared the folder; its counts stay."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]  # prometheus_client annotates it in part


class _Table(Collector):
    def __init__(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]) -> None:
        self._name, self._text, self._label, self._read = name, text, label, read

    def describe(self) -> Iterator[Metric]:
        yield self._family()

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self._name, self._text, labels=[self._label])

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        for key, value in self._read().items():
            family.add_metric([key], value)
        yield family
