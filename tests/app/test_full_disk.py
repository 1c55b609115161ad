"""No room left: which errors say so, and what a server answers whose database or store can take nothing more."""

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from app.full_disk import is_full
from app.jobs import Jobs
from app.judgements import Judgements
from app.keys import Keys
from app.replies import ErrorBody
from app.settings import database_url
from retriever.data import Corpus
from retriever.errors import StoreError
from tests.app.command_line import Hone
from tests.app.serve_process import BODY, ask, free_port, served
from tests.app.served import Server, publish_generation

ENOSPC = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "promotions.jsonl")
SQLITE_FULL = sqlite3.OperationalError("database or disk is full")
MINED = {"queries": [{"id": "q", "text": "alpha", "positives": ["p0"]}], "job": "hone"}
JUDGED = {"judgements": {"query": {"text": "alpha"}, "passage": "p0", "relevant": True}}


class DiskFull(Exception):
    """As psycopg's: it has the state in a field, and its text may be in any language."""

    sqlstate = "53100"


def wrapped(error: Exception, values: object = ()) -> OperationalError:
    return OperationalError("INSERT INTO jobs VALUES (?)", [values], error)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (ENOSPC, True),
        (OSError(errno.EDQUOT, "Plattenkontingent"), True),
        (wrapped(SQLITE_FULL), True),
        (wrapped(DiskFull("konnte Datei nicht erweitern")), True),
        (OSError(errno.EIO, os.strerror(errno.EIO)), False),
        (wrapped(sqlite3.OperationalError("database is locked")), False),
        (wrapped(sqlite3.OperationalError("disk I/O error"), "why is my disk is full"), False),
    ],
    ids=str,
)
def test_no_room_is_told_from_other_errors(error: Exception, full: bool) -> None:
    assert is_full(error) == full


def fill_database(table: Jobs | Judgements | Keys, error: sqlite3.Error = SQLITE_FULL) -> None:
    """Let every statement that writes fail as it does in a full database, or by ``error``."""

    def execute(_cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            raise error

    event.listen(table._engine, "do_execute", execute)


def refused(server: Server, path: str, body: object = None) -> str:
    """Ask for what has no room, and return what is said."""
    response = server.client.post(path, json=body)
    told = ErrorBody.model_validate_json(response.content)
    assert (response.status_code, told.error_type) == (507, "disk_full"), response.text
    assert "retry-after" not in response.headers, "time makes no room"
    return told.error


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/index/rebuild", None),
        ("/v1/jobs/JOB/cancel", None),
        ("/v1/mine", MINED),
        ("/v1/judgements", JUDGED),
    ],
)
def test_a_full_database_is_told_and_not_worth_another_try(server: Server, path: str, body: object) -> None:
    service = server.app.state.service
    service.processes.takes = False
    job, _ = service.jobs.create("rebuild")
    for table in (service.jobs, service.judgements):
        fill_database(table)
    assert "the database of jobs and judgements is full" in refused(server, path.replace("JOB", job.id), body)
    assert server.get(f"/v1/jobs/{job.id}")["state"] == "queued", "what is there can be read"
    assert server.post("/v1/search", {"queries": "alpha"})["generation"] == 0
    (line,) = server.log_lines("disk_full")
    assert line["reason"] == str(SQLITE_FULL), "not the values of the statement"


@pytest.mark.parametrize(("cause", "status"), [(errno.EDQUOT, 507), (errno.ENOSPC, 507), (errno.EIO, 503), (None, 503)])
def test_what_sqlite_does_not_say_of_a_quota_its_folder_does(
    server: Server, monkeypatch: pytest.MonkeyPatch, cause: int | None, status: int
) -> None:
    """It says of a quota what it says of a broken disk, so another write beside it tells the two apart."""
    asked: list[Path] = []
    fill_database(server.app.state.service.jobs, unexplained())
    real = tempfile.TemporaryFile

    def temporary_file(dir: Path) -> Any:
        asked.append(dir)
        if cause is not None:
            raise OSError(cause, os.strerror(cause))
        return real(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary_file)
    response = server.client.post("/v1/index/rebuild")
    assert (response.status_code, "retry-after" in response.headers) == (status, status == 503)
    assert {*asked} == {server.store.root}
    assert len(server.log_lines("disk_full")) == (status == 507)


@pytest.mark.parametrize("where", ["opening", "writing"])
def test_the_command_line_tells_of_a_quota_under_sqlite(
    hone: Hone, indexed: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    def opening(_connection: object) -> NoReturn:
        raise unexplained()

    def writing(url: str) -> Keys:
        keys = Keys(url)
        fill_database(keys, unexplained())
        return keys

    if where == "opening":
        monkeypatch.setattr("app.database._write_ahead", opening)
    else:
        monkeypatch.setattr("app.commands.keys.Keys", writing)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert "no space left" in hone("keys", "create", "me", "--scope", "search", "--store", indexed).complaint


def unexplained() -> sqlite3.OperationalError:
    """Return what SQLite says where the system refuses a write for a reason that it has no word for."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    return error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_promotion_that_finds_no_room_moves_nothing(server: Server) -> None:
    publish_generation(server.store, Corpus(server.store.corpora.at(0)), seed=1, serve=False)
    ledger = server.store.root / "promotions.jsonl"
    ledger.symlink_to("/dev/full")
    assert "no space left on the disk" in refused(server, "/v1/generations/1/promote?force=true")
    assert server.store.generations.pointed("SERVED") == 0
    ledger.unlink()
    assert server.post("/v1/generations/1/promote?force=true", None)["to"] == 1


def test_a_job_without_room_for_its_output_has_failed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise ENOSPC

    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "TemporaryFile", full)
        refused(server, "/v1/index/rebuild")
    (job,) = server.get("/v1/jobs")["jobs"]
    assert job["state"] == "failed" and "No space left" in job["error"]


@pytest.mark.parametrize(("cause", "status"), [(ENOSPC, 507), (OSError(errno.EIO, "broken"), 503)])
def test_an_error_of_the_store_is_what_caused_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, cause: OSError, status: int
) -> None:
    def fails(*_: object) -> None:
        raise StoreError("the lock cannot be taken") from cause

    monkeypatch.setattr("app.routes.generations.promote", lambda *_, **__: fails())
    response = server.client.post("/v1/generations/0/promote")
    assert (response.status_code, "retry-after" in response.headers) == (status, status == 503)


def test_another_error_of_the_system_stays_a_fault(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(server.app.state.service.jobs, "get", broken)
    assert server.get("/v1/jobs/a", 500)["error_type"] == "internal"


def test_every_route_that_writes_tells_of_it(server: Server) -> None:
    found = {
        path
        for path, methods in server.get("/openapi.json")["paths"].items()
        for route in methods.values()
        if "507" in route["responses"] and "Retry-After" not in route["responses"]["507"].get("headers", {})
    }
    moves = {"/v1/generations/{number}/promote", "/v1/generations/rollback"}
    assert found == {"/v1/index/rebuild", "/v1/jobs/{job_id}/cancel", "/v1/judgements", "/v1/mine", *moves}


SMALL = 'mount -t tmpfs -o size=24m hone "$2" && cp -a "$1" "$2" || exit 77; shift 2; exec "$@"'


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a small disk for one process")
def test_a_server_whose_disk_is_full_says_so_and_goes_on_once_there_is_room(indexed: Path, tmp_path: Path) -> None:
    """A real small disk, full to the last page; the job to cancel is another host's, so that none runs here."""
    small = tmp_path / "small"
    small.mkdir()
    with closing(Jobs(database_url(indexed))) as jobs:
        jobs.create("rebuild")
        job = jobs.take("elsewhere")
        assert job is not None
        jobs.begin(job.id, 1)
    through = ("unshare", "--mount", "sh", "-c", SMALL, "sh", str(indexed), str(small))
    if subprocess.run([*through, "true"], check=False).returncode != 0:
        pytest.skip("mounting a disk needs the right to mount, as root or in a user namespace")
    port, mine = free_port(), json.dumps({**MINED, "queries": [{"id": "q", "text": "ba ka", "positives": []}]})
    with served(small / indexed.name, port, "--drain-seconds", "0", through=through) as server:
        filling = Path(f"/proc/{server.pid}/root{small}/filling")
        with suppress(OSError), filling.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        cancel = f"/v1/jobs/{job.id}/cancel"
        for path, body in ((cancel, None), ("/v1/mine", mine)):
            status, text = ask(port, "POST", path, body)
            assert (status, json.loads(text)["error_type"]) == (507, "disk_full"), text
        assert ask(port, "POST", "/v1/search", BODY)[0] == 200
        assert ask(port, "GET", f"/v1/jobs/{job.id}")[0] == 200
        filling.unlink()
        status, text = ask(port, "POST", cancel)
        answer: dict[str, Any] = json.loads(text)
        assert (status, answer["outcome"]) == (200, "CANCELLING")
