"""The tables of jobs, keys and judgements in a real PostgreSQL server, started for these tests."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from app.database import open_database
from app.jobs import KEPT_RESULTS, Cancelled, Jobs, UnknownJobError
from app.judgements import Judgements, Said
from app.keys import Keys
from app.server import ServerConfig
from tests.app.served import end_children, new_store, publish_generation, serving, wait_for

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


@pytest.mark.parametrize("job_id", ["\0", "no job", "x" * 1000])
def test_any_text_may_be_asked_for_as_a_job(jobs: Jobs, job_id: str) -> None:
    for ask in (jobs.get, jobs.request_cancel):
        with pytest.raises(UnknownJobError):
            ask(job_id)


def test_parts_are_kept_whole_and_by_whoever_has_the_job_alone(jobs: Jobs, url: str) -> None:
    asked, made = [b"\0any bytes\xff", b"of 2"], b"x" * (1 << 20)
    job_id = jobs.create("mine", {"quotas": {"b": 1, "a": 2}}, asked)[0].id
    sleeper = Jobs(url)
    sleeper.begin(job_id, 1)
    sleeper.keep_part(job_id, 0, made, {"queries": 256, "bytes": len(made)})
    assert jobs.give_back(jobs.get(job_id))
    jobs.begin(job_id, 2)
    with pytest.raises(Cancelled):
        sleeper.keep_part(job_id, 1, b"too late", {})
    jobs.keep_part(job_id, 1, b"", {"queries": 1, "bytes": 0})
    assert jobs.finish(job_id, {"lines": 257})
    assert [jobs.part(job_id, "asked", number) for number in jobs.parts(job_id, "asked")] == asked
    assert jobs.parts(job_id, "made") == {0: {"queries": 256, "bytes": 1 << 20}, 1: {"queries": 1, "bytes": 0}}
    assert jobs.part(job_id, "made", 0) == made
    assert [*jobs.get(job_id).params["quotas"]] == ["b", "a"], "the order of a draw"
    for _ in range(KEPT_RESULTS):
        jobs.stopped(jobs.create("mine", None, [b"next"])[0].id)
    with pytest.raises(UnknownJobError, match="was removed"):
        jobs.part(job_id, "made", 0)
    sleeper.close()


def test_a_mining_job_of_a_server_is_done_and_read_there(
    jobs: Jobs, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, over other generations, of which one is named by a pointer."""
    store, corpus = new_store(tmp_path)
    for seed in range(2):
        publish_generation(store, corpus, seed)
    store.generations.point("WARMUP", 0)
    root, script = Path(__file__).parents[2], Path(__file__).with_name("job_script.py")
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("HONE_STORE", str(store.root))
    queries = [{"id": f"q{i}", "text": f"alpha {i % 7}", "positives": [f"p{i % 8}"]} for i in range(600)]
    body = {"queries": queries, "num_negatives": 3, "sources": ["ann", "generation:WARMUP"], "depth": 5, "job": "hone"}
    with serving(store, ServerConfig(job_command=(sys.executable, str(script), "mine")), database=url) as server:
        place = f"/v1/jobs/{server.post('/v1/mine', body, 202)['id']}"
        wait_for(lambda: server.get(place)["state"] not in ("queued", "running"), seconds=60)
        done = server.get(place)
        assert done["state"] == "done", done
        assert done["result"]["others"] == {"generation:WARMUP": 0}
        lines = [json.loads(line) for line in server.client.get(f"{place}/result").text.splitlines()]
        end_children(server.app.state.service.processes)
    assert [line["id"] for line in lines] == [query["id"] for query in queries]
    assert any("generation:WARMUP" in hit["source"] for line in lines for hit in line["negatives"])


def test_what_a_job_made_is_given_once_to_one_of_all_who_ask(jobs: Jobs, url: str) -> None:
    workers = [Jobs(url) for _ in range(4)]
    jobs.newly_done("mine")  # what the tests before have left
    for number in range(3):
        job_id = jobs.create("mine")[0].id
        jobs.begin(job_id, 1)
        jobs.finish(job_id, {"negatives": number})
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda number: workers[number % 4].newly_done("mine"), range(32)))
    assert sorted(result["negatives"] for results in given for result in results) == [0, 1, 2]
    for table in workers:
        table.close()


FULL = """
CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER full_disk BEFORE INSERT ON jobs FOR EACH STATEMENT EXECUTE FUNCTION full_disk();
"""


def test_a_full_disk_of_the_database_is_told_from_one_that_is_lost(jobs: Jobs, url: str, tmp_path: Path) -> None:
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(text(FULL))
    try:
        with serving(new_store(tmp_path)[0], database=url) as server:
            assert server.post("/v1/index/rebuild", None, 507)["error_type"] == "disk_full"
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP FUNCTION full_disk CASCADE"))
        engine.dispose()


def test_many_may_open_a_new_database_at_once(url: str) -> None:
    """As the replicas of a deployment do."""
    engine = open_database(url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE DATABASE fresh"))
    engine.dispose()
    together = threading.Barrier(4)

    def open_it(_: int) -> str:
        together.wait()
        table = Jobs(url.replace("/postgres?", "/fresh?"))
        job, _new = table.create("rebuild")
        table.close()
        return job.id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(open_it, range(4)))) == 1


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


def test_what_many_judge_at_once_is_stored_once(url: str) -> None:
    tables, together = [Judgements(url) for _ in range(4)], threading.Barrier(4)
    said = [Said("q", "alpha", "p0", 2**64 - 1 - n, n % 3, f"judge {n % 2}", None) for n in range(10)]

    def say(table: Judgements) -> int:
        together.wait()
        return sum(table.add([one], generation=0) for one in said)

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(say, tables)) == len(said)
    table = tables[0]
    assert table.on([("r", "Alpha")], table.position()) == [{2**64 - 1 - n: n % 3 for n in range(10)}]
    assert [row.text_hash for row in table.newest(1)] == [row.text_hash for row in table.all()[-1:]]
    for one in tables:
        one.close()
