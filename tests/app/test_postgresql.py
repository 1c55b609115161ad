"""The table of jobs in a real PostgreSQL server, started for these tests."""

import os
import pwd
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.jobs import Cancelled, Jobs
from app.keys import Keys

PROGRAMS = ("initdb", "pg_ctl", "postgres")


def missing() -> str:
    """Say what a server cannot be started for, empty if it can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"needs PostgreSQL's {', '.join(absent)} on PATH" if absent else ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "there")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A database of a server that listens on a socket in its own folder alone.

    PostgreSQL refuses to run for root, so for root it runs for nobody.
    """
    owner = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())

    def run(*command: str | Path) -> None:
        user, group = (owner.pw_uid, owner.pw_gid) if os.getuid() == 0 else (None, None)
        with (folder / "said").open("w") as said:  # not a pipe: the server would hold it open
            parts = [str(part) for part in command]
            done = subprocess.run(parts, stdout=said, stderr=said, check=False, cwd=folder, user=user, group=group)
        assert done.returncode == 0, (folder / "said").read_text()

    with tempfile.TemporaryDirectory(prefix="hone-pg-") as made:
        folder, data = Path(made), Path(made, "data")
        if os.getuid() == 0:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        run("initdb", "--pgdata", data, "--username", "hone", "--auth", "trust", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
        run("pg_ctl", "start", "-w", "-D", data, "-l", folder / "log", "-o", options)
        try:
            yield f"postgresql://hone@/postgres?host={folder}"
        finally:
            run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", data)


@pytest.fixture
def jobs(url: str) -> Iterator[Jobs]:
    table = Jobs(url)
    yield table
    for job in table.active():
        table.fail(job.id, "the test is over")
    table.close()


def test_a_job_from_queued_to_done(jobs: Jobs) -> None:
    job, new = jobs.create("rebuild", {"why": "test"})
    assert new and jobs.create("rebuild")[0].id == job.id
    taken = jobs.take("here")
    assert taken is not None and (taken.id, taken.params) == (job.id, {"why": "test"})
    jobs.begin(job.id, 1)
    jobs.progress(job.id, "encode", 1, 2)
    assert jobs.finish(job.id, {"generation": 1})
    assert jobs.get(job.id).result == {"generation": 1}
    assert jobs.newest(1)[0].id == job.id and jobs.counts()["done"] >= 1


def test_many_at_once_make_one_job_and_one_takes_it(jobs: Jobs, url: str) -> None:
    tables = [Jobs(url) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: tables[number % 4].create("rebuild")[0].id, range(32)))
        taken = list(pool.map(lambda number: tables[number % 4].take(f"host {number}"), range(32)))
    assert len(set(made)) == 1
    assert [job.id for job in taken if job is not None] == made[:1]
    for table in tables:
        table.close()


def test_who_lost_a_job_can_write_to_it_no_more(jobs: Jobs, url: str) -> None:
    sleeper, job_id = Jobs(url), jobs.create("rebuild")[0].id
    sleeper.begin(job_id, 1)
    assert jobs.give_back(jobs.get(job_id))
    jobs.begin(job_id, 2)
    with pytest.raises(Cancelled):
        sleeper.progress(job_id, "publish", 1, 1)
    assert not sleeper.finish(job_id, {}) and jobs.finish(job_id, {})
    sleeper.close()


def test_progress_and_cancel_meet_without_a_deadlock(jobs: Jobs) -> None:
    job_id = jobs.create("rebuild")[0].id
    jobs.begin(job_id, 1)
    stop = threading.Event()

    def beat() -> None:
        while not stop.is_set():
            jobs.beat(job_id)

    with ThreadPoolExecutor(2) as pool:
        beats = [pool.submit(beat) for _ in range(2)]
        for done in range(100):
            jobs.progress(job_id, "encode", done, 100)
        jobs.request_cancel(job_id)
        stop.set()
        assert all(future.result() is None for future in beats)
    with pytest.raises(Cancelled):
        jobs.progress(job_id, "encode", 100, 100)
    assert jobs.stopped(job_id)


def test_keys_are_kept_there_too(url: str) -> None:
    keys = Keys(url)
    secret, key = keys.create("ann", ["search"])
    found = keys.find(secret)
    assert found is not None and (found.id, found.scopes) == (key.id, ["search"])
    assert keys.revoke(key.id)
    other = Keys(url)
    assert other.find(secret) is None
    for table in (keys, other):
        table.close()
