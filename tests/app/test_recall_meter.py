import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app import recall_meter
from app.recall_meter import RecallMeter
from app.snapshot import Snapshot, load_snapshot
from app.telemetry import Telemetry
from retriever.protocols import FloatArray
from tests.app.served import OPENERS, Server, new_store, publish_generation, wait_for


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry(io.StringIO())


@pytest.fixture
def snapshots(tmp_path: Path) -> list[Snapshot]:
    """Two generations of eight passages, by exact indexes."""
    store, corpus = new_store(tmp_path)
    made = [publish_generation(store, corpus, seed).number for seed in range(2)]
    return [load_snapshot(store, OPENERS, print, number=number) for number in made]


@pytest.fixture
def meter(telemetry: Telemetry) -> Iterator[RecallMeter]:
    meter = RecallMeter(telemetry, every_seconds=0.0)
    yield meter
    meter.stop()


def query(seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((1, 32)).astype(np.float32)


def recall(telemetry: Telemetry) -> float | None:
    return telemetry.registry.get_sample_value("hone_recall_at_k", {"k": "10"})


def test_the_figure_is_the_mean_of_the_served_generation_s_samples(
    telemetry: Telemetry, snapshots: list[Snapshot], meter: RecallMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = snapshots
    meter.measure(first, query())
    assert recall(telemetry) == 1.0

    def half(queries: FloatArray, depth: int) -> tuple[FloatArray, FloatArray]:
        rows, scores = second.searcher.search(queries, depth)
        return np.where(np.arange(depth) % 2 == 0, rows, -1), scores

    with monkeypatch.context() as patch:
        patch.setattr(first.searcher, "search", half)
        meter.measure(first, query())
    assert recall(telemetry) == pytest.approx(0.75)
    meter.measure(second, query())
    assert recall(telemetry) == 1.0
    assert telemetry.registry.get_sample_value("hone_recall_samples_total") == 3


def test_offers_beyond_one_are_dropped_and_none_waits(
    snapshots: list[Snapshot], meter: RecallMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on, measured = threading.Event(), threading.Event(), list[int]()

    def slow(snapshot: Snapshot, asked: FloatArray) -> None:
        began.set()
        go_on.wait()
        measured.append(len(asked))

    monkeypatch.setattr(meter, "measure", slow)
    meter.start()
    meter.offer(snapshots[0], np.repeat(query(), 5, axis=0))
    began.wait()
    for _ in range(100):
        meter.offer(snapshots[0], query())
    go_on.set()
    wait_for(lambda: len(measured) == 2)
    meter.stop()
    assert measured == [1, 1]


def test_a_failure_is_logged_and_measuring_goes_on(
    telemetry: Telemetry, snapshots: list[Snapshot], meter: RecallMeter
) -> None:
    meter.start()
    meter.offer(snapshots[0], np.zeros((1, 3), np.float32))
    wait_for(meter._waiting.empty)
    wait_for(lambda: _offered(meter, snapshots[0]) and recall(telemetry) == 1.0)


def _offered(meter: RecallMeter, snapshot: Snapshot) -> bool:
    meter.offer(snapshot, query())
    return True


def test_costly_samples_are_taken_less_often(
    snapshots: list[Snapshot], meter: RecallMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(time, "thread_time", lambda: 0.5 * next(clock))
    monkeypatch.setattr(meter, "measure", lambda *_: None)
    before = time.monotonic()
    meter.start()
    meter.offer(snapshots[0], query())
    wait_for(lambda: meter._not_before >= before + 0.5 / recall_meter.SHARE)


def test_a_server_shows_its_recall(server: Server) -> None:
    server.post("/v1/search", {"queries": "alpha", "exact": True})
    assert recall(server.app.state.service.telemetry) is None
    server.post("/v1/search", {"queries": "alpha"})
    wait_for(lambda: recall(server.app.state.service.telemetry) == 1.0)
    assert 'hone_recall_at_k{k="10"} 1.0' in server.client.get("/metrics").text
