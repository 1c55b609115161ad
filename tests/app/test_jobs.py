import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from app.jobs import KEPT_RESULTS, Cancelled, Jobs, TooLateError, UnknownJobError
from retriever.errors import InputError


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    table = Jobs(f"sqlite:///{tmp_path / 'hone.db'}")
    yield table
    table.close()


def new_job(jobs: Jobs, kind: str = "rebuild") -> str:
    return jobs.create(kind)[0].id


def test_a_job_from_queued_to_done(jobs: Jobs) -> None:
    job_id = new_job(jobs)
    assert jobs.get(job_id).state == "queued"
    jobs.begin(job_id, pid=7)
    assert (jobs.get(job_id).state, jobs.get(job_id).pid) == ("running", 7)
    assert jobs.finish(job_id, {"generation": 3})
    done = jobs.get(job_id)
    assert (done.state, done.result, done.eta_seconds) == ("done", {"generation": 3}, 0.0)
    assert done.created <= (done.started or 0) <= done.updated


def test_a_job_outlives_the_connection(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'hone.db'}"
    first = Jobs(url)
    job_id = new_job(first)
    first.close()
    again = Jobs(url)
    assert again.get(job_id).state == "queued"
    again.close()


def test_one_job_of_a_kind_is_active_at_a_time(jobs: Jobs) -> None:
    first = new_job(jobs)
    again, new = jobs.create("rebuild")
    assert (again.id, new) == (first, False)
    assert new_job(jobs, "other") != first
    jobs.begin(first, 1)
    assert jobs.create("rebuild")[0].id == first
    jobs.fail(first, "broke")
    assert jobs.create("rebuild")[1]


def test_what_a_job_made_is_given_once_to_one_of_all_who_ask(jobs: Jobs) -> None:
    workers = [jobs, Jobs(jobs.url)]
    assert jobs.newly_done("mine") == []
    for number in range(6):
        job_id = new_job(jobs, "mine")
        jobs.begin(job_id, 1)
        if number == 0:
            assert jobs.newly_done("mine") == [], "it only runs"
        if number == 2:
            jobs.fail(job_id, "broke")
        else:
            jobs.finish(job_id, {"negatives": number})
    rebuild = new_job(jobs)
    jobs.begin(rebuild, 1)
    jobs.finish(rebuild, {"generation": 1})
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda number: workers[number % 2].newly_done("mine"), range(16)))
    assert sorted(result["negatives"] for results in given for result in results) == [0, 1, 3, 4, 5]
    assert jobs.newly_done("rebuild") == [{"generation": 1}]
    workers[1].close()


def test_many_requests_at_once_make_one_job(jobs: Jobs) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: jobs.create("rebuild"), range(32)))
    assert len({job.id for job, _ in made}) == 1
    assert sum(new for _, new in made) == 1


def test_progress_tells_rate_and_time_left(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    job_id = new_job(jobs)
    jobs.begin(job_id, 1)
    jobs.progress(job_id, "encode", 400, 1000)
    assert (jobs.get(job_id).rate, jobs.get(job_id).eta_seconds) == (None, None)
    now += 10
    jobs.progress(job_id, "encode", 500, 1000)
    job = jobs.get(job_id)
    assert (job.phase, job.done, job.total, job.rate, job.eta_seconds) == ("encode", 500, 1000, 10.0, 50.0)
    now += 1
    jobs.progress(job_id, "index", 0, 10)
    assert (jobs.get(job_id).phase, jobs.get(job_id).rate) == ("index", None)


def test_cancelling_a_queued_job_ends_it_at_once(jobs: Jobs) -> None:
    job_id = new_job(jobs)
    assert jobs.request_cancel(job_id)
    assert jobs.get(job_id).state == "cancelled"
    with pytest.raises(Cancelled, match="will not run"):
        jobs.begin(job_id, 1)


def test_cancelling_a_running_job_reaches_its_progress(jobs: Jobs) -> None:
    job_id = new_job(jobs)
    jobs.begin(job_id, 1)
    assert jobs.request_cancel(job_id)
    assert jobs.request_cancel(job_id)
    assert jobs.get(job_id).state == "running"
    with pytest.raises(Cancelled):
        jobs.progress(job_id, "encode", 1, 2)
    assert jobs.stopped(job_id)
    assert not jobs.request_cancel(job_id)
    assert jobs.get(job_id).state == "cancelled"


def test_cancelling_what_has_ended(jobs: Jobs) -> None:
    done, failed = new_job(jobs, "a"), new_job(jobs, "b")
    jobs.begin(done, 1)
    jobs.finish(done, {})
    with pytest.raises(TooLateError, match="too late"):
        jobs.request_cancel(done)
    jobs.fail(failed, "broke")
    assert not jobs.request_cancel(failed)
    with pytest.raises(UnknownJobError, match="no job 'x'"):
        jobs.request_cancel("x")


def test_a_job_ends_once(jobs: Jobs) -> None:
    job_id = new_job(jobs)
    jobs.begin(job_id, 1)
    assert jobs.fail(job_id, "its process is gone")
    assert not jobs.finish(job_id, {"generation": 1})
    with pytest.raises(Cancelled):
        jobs.progress(job_id, "encode", 1, 2)
    assert (jobs.get(job_id).state, jobs.get(job_id).error) == ("failed", "its process is gone")


def test_newest_first_and_counted(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    made = []
    for number in range(3):
        now += 1
        made.append(new_job(jobs, f"kind {number}"))
    assert [job.id for job in jobs.newest(2)] == made[:0:-1]
    jobs.fail(made[0], "broke")
    assert jobs.counts() == {"queued": 2, "running": 0, "done": 0, "failed": 1, "cancelled": 0}
    assert {job.id for job in jobs.active()} == set(made[1:])


def test_many_writers_never_find_the_database_locked(jobs: Jobs) -> None:
    job_id = new_job(jobs)
    jobs.begin(job_id, 1)
    stop = threading.Event()

    def beat() -> int:
        count = 0
        while not stop.is_set():
            jobs.beat(job_id)
            count += 1
        return count

    with ThreadPoolExecutor(2) as pool:
        beats = [pool.submit(beat) for _ in range(2)]
        for done in range(100):
            jobs.progress(job_id, "encode", done, 100)
        stop.set()
        assert all(future.result() > 0 for future in beats)
    assert jobs.get(job_id).done == 99


def test_a_job_is_taken_once_and_the_oldest_first(jobs: Jobs) -> None:
    first, second = new_job(jobs, "a"), new_job(jobs, "b")
    with ThreadPoolExecutor(8) as pool:
        taken = [job.id for job in pool.map(lambda _: jobs.take("here"), range(8)) if job is not None]
    assert sorted(taken, key=[first, second].index) == [first, second]
    assert jobs.take("here") is None
    assert (jobs.get(first).host, jobs.get(first).attempts) == ("here", 1)


def test_parameters_come_along(jobs: Jobs) -> None:
    jobs.create("promote", {"number": 3, "force": True})
    job = jobs.take("here")
    assert job is not None and job.params == {"number": 3, "force": True}


def test_who_lost_a_job_can_write_to_it_no_more(jobs: Jobs, tmp_path: Path) -> None:
    """The process that was given up for lost wakes up after another one has begun."""
    job_id = new_job(jobs)
    sleeper, successor = (Jobs(jobs.url) for _ in range(2))
    jobs.take("here")
    sleeper.begin(job_id, 1)
    assert jobs.give_back(jobs.get(job_id))
    with pytest.raises(Cancelled):
        sleeper.progress(job_id, "publish", 1, 1)
    jobs.take("there")
    successor.begin(job_id, 2)
    with pytest.raises(Cancelled):
        sleeper.progress(job_id, "publish", 1, 1)
    before = jobs.get(job_id).updated
    sleeper.beat(job_id)
    assert not sleeper.finish(job_id, {"generation": 1}) and not sleeper.fail(job_id, "broke")
    assert not sleeper.stopped(job_id)
    assert (jobs.get(job_id).state, jobs.get(job_id).updated) == ("running", before)
    assert successor.finish(job_id, {"generation": 2})
    for table in (sleeper, successor):
        table.close()


def test_another_attempt_counts_anew(jobs: Jobs) -> None:
    job_id = new_job(jobs)
    jobs.begin(job_id, 1)
    jobs.progress(job_id, "encode", 0, 10)
    jobs.progress(job_id, "encode", 6, 10)
    assert jobs.give_back(jobs.get(job_id))
    jobs.begin(job_id, 2)
    assert (jobs.get(job_id).phase, jobs.get(job_id).done) == ("", 0)
    jobs.progress(job_id, "encode", 5, 10)
    assert (jobs.get(job_id).phase_offset, jobs.get(job_id).rate) == (5, None)


def test_a_job_is_given_back_only_as_it_was_seen(jobs: Jobs) -> None:
    job_id = new_job(jobs)
    seen = jobs.get(job_id)
    jobs.take("here")
    jobs.begin(job_id, 1)
    assert not jobs.give_back(seen)
    assert jobs.get(job_id).state == "running"


def test_a_table_of_an_earlier_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "hone.db"
    with closing(sqlite3.connect(path)) as connection:
        Jobs(f"sqlite:///{path}").close()
        for column in ("params", "token", "attempts", "counted"):
            connection.execute(f"ALTER TABLE jobs DROP COLUMN {column}")
        connection.execute(
            "INSERT INTO jobs (id, kind, state, phase, done, total, created, updated, cancel_requested, host,"
            " phase_started, phase_offset) VALUES ('old', 'rebuild', 'queued', '', 0, 0, 1, 1, 0, '', 0, 0),"
            " ('older', 'mine', 'done', '', 0, 0, 0, 0, 0, '', 0, 0)"
        )
        connection.commit()
    again = Jobs(f"sqlite:///{path}")
    job = again.take("here")
    assert job is not None and (job.id, job.params, job.attempts) == ("old", {}, 1)
    assert again.newly_done("mine") == [], "what was done before is no news"
    again.close()


@pytest.mark.parametrize("url", ["sqlite:////proc/none/hone.db", "no url", "nosuchdatabase://host/name"])
def test_a_database_that_cannot_be_opened_names_its_setting(url: str) -> None:
    with pytest.raises(InputError, match="DATABASE_URL"):
        Jobs(url)


def test_what_a_job_works_on_and_made_comes_in_parts(jobs: Jobs) -> None:
    job, _ = jobs.create("mine", {}, [b"one", b"two"])
    assert [jobs.part(job.id, "asked", number) for number in jobs.parts(job.id, "asked")] == [b"one", b"two"]
    jobs.begin(job.id, 1)
    jobs.keep_part(job.id, 1, b"made", {"lines": 3})
    assert jobs.parts(job.id, "made") == {1: {"lines": 3}} and jobs.part(job.id, "made", 1) == b"made"
    with pytest.raises(UnknownJobError, match="part 0 was removed"):
        jobs.part(job.id, "made", 0)


def test_a_process_that_lost_its_job_keeps_no_part(jobs: Jobs) -> None:
    job, _ = jobs.create("mine")
    other = Jobs(jobs.url)
    jobs.begin(job.id, 1)
    assert other.give_back(jobs.get(job.id))
    other.begin(job.id, 2)
    with pytest.raises(Cancelled):
        jobs.keep_part(job.id, 0, b"late", {})
    other.keep_part(job.id, 0, b"in time", {})
    assert other.part(job.id, "made", 0) == b"in time"
    other.close()


def test_the_parts_of_the_newest_jobs_of_a_kind_are_kept(jobs: Jobs) -> None:
    made = []
    for _ in range(KEPT_RESULTS + 2):
        job, _new = jobs.create("mine", {}, [b"asked"])
        jobs.begin(job.id, 1)
        jobs.keep_part(job.id, 0, b"made", {})
        jobs.finish(job.id, {})
        made.append(job.id)
    jobs.create("rebuild")
    kept = [job_id for job_id in made if jobs.parts(job_id, "made")]
    assert kept == made[2:] == [job_id for job_id in made if jobs.parts(job_id, "asked")]
