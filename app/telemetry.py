"""What the server tells of itself: Prometheus metrics in a registry of its own and log lines in JSON.

Does not know routes, nor where its numbers come from.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from structlog.typing import FilteringBoundLogger

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


class Telemetry:
    """The metrics and the log of one server."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Log to ``stream``, by default to standard error."""
        self.log = json_log(stream or sys.stderr)
        self.registry = CollectorRegistry()
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
        self.mined = Counter("hone_mined_negatives", "Negatives returned by mining.", registry=self.registry)
        self.batch_tokens = Histogram(
            "hone_batch_tokens", "Tokens of a batch of the model.", buckets=TOKEN_BUCKETS, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "hone_batch_seconds", "Time to compute a batch.", buckets=SECONDS_BUCKETS, registry=self.registry
        )
        self.swaps = Counter("hone_swaps", "Attempts to swap the snapshot.", ["result"], registry=self.registry)
        for result in ("loaded", "failed"):
            self.swaps.labels(result)

    def count_swap(self, result: str) -> None:
        """Count an attempt to swap the snapshot that was "loaded" or "failed"."""
        self.swaps.labels(result).inc()

    def count_batch(self, tokens: int, seconds: float) -> None:
        """Count a batch that the model computed."""
        self.batch_tokens.observe(tokens)
        self.batch_seconds.observe(seconds)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Show a gauge whose value is read at each scrape; NaN stands for what is not known."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def watch_each(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]) -> None:
        """Show a gauge with one value for each key that ``read`` gives at a scrape."""
        self.registry.register(_Table(name, text, label, read))

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


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
