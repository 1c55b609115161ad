import os
import socket
from pathlib import Path

import pytest

from app import serving
from app.admission import AdmissionConfig
from app.job_processes import job_command
from app.keys import Keys
from app.priority import Priority
from app.server import ServerConfig
from app.serving import ServeOptions, serve_store
from app.settings import database_url
from retriever.errors import InputError
from retriever.store import Store

pytestmark = pytest.mark.usefixtures("own_logging")


@pytest.mark.parametrize(("host", "options"), [("0.0.0.0", None), ("127.0.0.1", ServeOptions(require_keys=True))])
def test_where_keys_are_asked_for_there_must_be_one(indexed: Path, host: str, options: ServeOptions | None) -> None:
    keys = Keys(database_url(indexed))
    keys.revoke(keys.create("gone", ["search"])[1].id)
    keys.close()
    with pytest.raises(InputError, match=r"hone keys create.*--insecure"):
        serve_store(indexed, host, 0, options)


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a hone store"):
        serve_store(tmp_path, "127.0.0.1", 0)


def test_limits_that_the_served_model_cannot_live_with_are_refused_at_once(indexed: Path) -> None:
    narrow = ServeOptions(admission=AdmissionConfig(batch_tokens=5, patient_batch_tokens=5, queue_tokens=5))
    with pytest.raises(InputError, match=r"queue_tokens = 5: the model reads \d+ tokens of a text; raise it"):
        serve_store(indexed, "127.0.0.1", 0, narrow)
    assert not (indexed / "hone.db").exists(), "nothing was begun"
    with pytest.raises(InputError, match="make one with `hone keys create`"):
        serve_store(indexed, "0.0.0.0", 0, ServeOptions())


@pytest.mark.parametrize("broken", [True, False])
def test_what_is_not_there_to_be_asked_for_its_limits_is_left_to_the_server(
    indexed: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    if broken:
        (Store(indexed).generations.path(0) / "model" / "hone.json").unlink()
    else:
        (indexed / "generations" / "SERVED").unlink()
    monkeypatch.setattr(serving, "_run", lambda *_: None)
    serve_store(indexed, "127.0.0.1", 0)


def test_the_address_is_told_with_the_port_that_the_system_chose(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    told: list[str] = []
    monkeypatch.setattr(serving, "_run", lambda *given: taken.append(given[3].getsockname()[1]))
    serve_store(indexed, "127.0.0.1", 0, None, told.append)
    assert taken[0] > 0 and told == [f"http://127.0.0.1:{taken[0]}"]


def test_an_address_is_one_that_a_client_can_be_given() -> None:
    assert serving.address("::1", 8000) == "http://[::1]:8000"
    assert serving.address("search.example.org", 80) == "http://search.example.org:80"


def test_a_port_in_use_is_named(indexed: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"cannot listen on 127\.0\.0\.1:{port} \(Address already in use\)"):
            serve_store(indexed, "127.0.0.1", port)
    assert not (indexed / "hone.db").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("environment", "workers", "threads"),
    [
        ({}, 2, 4),
        ({}, 3, 2),
        ({}, 20, 1),
        ({"OMP_NUM_THREADS": "4"}, 2, 2),
        ({"OMP_NUM_THREADS": "3,2"}, 2, 1),
        ({"OMP_NUM_THREADS": ""}, 2, 4),
    ],
)
def test_workers_share_the_machine_or_the_threads_that_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], workers: int, threads: int
) -> None:
    monkeypatch.setattr(serving, "cpus", lambda: 8)
    assert serving.threads_each(environment, workers) == threads


@pytest.mark.parametrize("given", ["many", "0", "-1", ",2"])
def test_a_number_of_threads_that_is_none_is_named(given: str) -> None:
    with pytest.raises(InputError, match="OMP_NUM_THREADS"):
        serving.threads_each({"OMP_NUM_THREADS": given}, 2)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system confines no process to some cores")
def test_cpus_are_those_that_this_process_may_use() -> None:
    own = os.sched_getaffinity(0)
    assert serving.cpus() == len(own)
    try:
        os.sched_setaffinity(0, {min(own)})
        assert serving.cpus() == 1
    finally:
        os.sched_setaffinity(0, own)


def test_jobs_and_names_are_as_the_options_say(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ServerConfig] = []

    def create_app(config: ServerConfig, *_: object) -> None:
        asked.append(config)
        raise InputError("enough")

    monkeypatch.setattr(serving, "create_app", create_app)
    for options in (None, ServeOptions(insecure=True, job_priority=Priority.NORMAL)):
        with pytest.raises(InputError, match="enough"):
            serve_store(indexed, "127.0.0.1", 0, options)
    commands = [config.job_command for config in asked]
    assert commands == [job_command(indexed, Priority.IDLE), job_command(indexed, Priority.NORMAL)]
    assert [config.proxied for config in asked] == [False, True]
