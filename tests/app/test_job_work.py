import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from app import job_work
from app.job_work import working
from app.jobs import Cancelled, Jobs
from tests.app.served import wait_for


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    table = Jobs(f"sqlite:///{tmp_path / 'hone.db'}")
    yield table
    table.close()


@pytest.fixture
def job_id(jobs: Jobs) -> str:
    return jobs.create("rebuild")[0].id


def test_work_that_finishes(jobs: Jobs, job_id: str) -> None:
    with working(jobs, job_id) as progress:
        assert (jobs.get(job_id).state, jobs.get(job_id).pid) == ("running", os.getpid())
        progress("encode", 1, 2)
        jobs.finish(job_id, {"generation": 5})
    assert jobs.get(job_id).result == {"generation": 5}


def test_an_error_is_the_job_s_end_and_goes_on(jobs: Jobs, job_id: str) -> None:
    with pytest.raises(ValueError, match="no good"), working(jobs, job_id):
        raise ValueError("no good")
    assert (jobs.get(job_id).state, jobs.get(job_id).error) == ("failed", "ValueError: no good")


def test_an_interrupt_is_the_job_s_end(jobs: Jobs, job_id: str) -> None:
    with pytest.raises(KeyboardInterrupt), working(jobs, job_id):
        raise KeyboardInterrupt
    assert jobs.get(job_id).state == "failed"


def test_a_cancelled_job_stops_at_its_next_step(jobs: Jobs, job_id: str) -> None:
    steps = 0

    def work() -> None:
        nonlocal steps
        with working(jobs, job_id) as progress:
            jobs.request_cancel(job_id)
            for steps in range(1000):
                progress("encode", steps, 1000)
                time.sleep(0.01)

    with pytest.raises(Cancelled):
        work()
    assert steps < 100
    assert jobs.get(job_id).state == "cancelled"


def test_a_job_that_was_cancelled_before_it_began_does_nothing(jobs: Jobs, job_id: str) -> None:
    jobs.request_cancel(job_id)
    with pytest.raises(Cancelled), working(jobs, job_id):
        pytest.fail("the work began")
    assert jobs.get(job_id).state == "cancelled"


def test_progress_is_written_at_a_bounded_pace_but_for_ends(
    jobs: Jobs, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, int, int]] = []
    monkeypatch.setattr(jobs, "progress", lambda _, phase, done, total: written.append((phase, done, total)))
    monkeypatch.setattr(job_work, "REPORT_SECONDS", 60.0)
    with working(jobs, job_id) as progress:
        for done in range(101):
            progress("encode", done, 100)
        progress("index", 0, 1)
        progress("index", 1, 1)
    assert written == [("encode", 0, 100), ("encode", 100, 100), ("index", 0, 1), ("index", 1, 1)]


def test_the_heart_beats_while_nothing_is_reported_and_survives_a_lost_database(
    jobs: Jobs, job_id: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    beats = 0
    beat = jobs.beat

    def unsteady(beating: str) -> None:
        nonlocal beats
        beats += 1
        if beats == 1:
            raise OperationalError("UPDATE", None, Exception("the database is away"))
        beat(beating)

    monkeypatch.setattr(jobs, "beat", unsteady)
    monkeypatch.setattr(job_work, "BEAT_SECONDS", 0.005)
    with working(jobs, job_id):
        begun = jobs.get(job_id).updated
        wait_for(lambda: jobs.get(job_id).updated > begun)
    assert "heartbeat" in caplog.text


def test_a_report_that_is_lost_ends_no_work_but_no_phase_begins_without_one(
    jobs: Jobs, job_id: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever has lost the job meanwhile hears of it before it publishes."""
    told: list[tuple[str, int]] = []

    def away(_job: str, phase: str, done: int, _total: int) -> None:
        told.append((phase, done))
        if done or phase == "publish":
            raise OperationalError("UPDATE", None, Exception("the database is away"))

    def work() -> None:
        with working(jobs, job_id) as progress:
            for phase, done in (("encode", 0), ("encode", 2), ("publish", 0)):
                progress(phase, done, 2)

    monkeypatch.setattr(jobs, "progress", away)
    with pytest.raises(OperationalError):
        work()
    assert told == [("encode", 0), ("encode", 2), ("publish", 0)]
    assert "progress" in caplog.text and jobs.get(job_id).state == "failed"
