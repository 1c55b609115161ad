from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from app.server import ServerConfig
from tests.app.served import OPENERS, listening, new_store, publish_generation, serving, wait_for

SEARCH = {"queries": "alpha"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    store, corpus = new_store(tmp_path_factory.mktemp("keyless"))
    publish_generation(store, corpus)
    url = "http://127.0.0.1:"
    with listening(store, ServerConfig(), OPENERS) as port, httpx2.Client(base_url=f"{url}{port}") as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        yield client


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://127.0.0.1:8000", 200),
        ("http://localhost:3000", 200),
        ("http://[::1]:8000", 200),
        ("https://elsewhere.example", 403),
        ("http://127.0.0.1.elsewhere.example", 403),
        ("http://[", 403),
        ("null", 403),
    ],
)
def test_a_page_of_others_changes_nothing_on_a_server_without_keys(
    client: httpx2.Client, origin: str | None, status: int
) -> None:
    headers = {} if origin is None else {"origin": origin}
    assert client.post("/v1/search", json=SEARCH, headers=headers).status_code == status
    assert client.get("/v1/generations", headers=headers).status_code == 200
    moved = client.post("/v1/generations/rollback", headers=headers)
    assert moved.status_code == (403 if status == 403 else 409)
    if status == 403:
        assert moved.json()["error_type"] == "forbidden" and "may not ask a server without keys" in moved.text


def test_a_name_that_was_made_to_mean_this_machine_is_not_its_own(client: httpx2.Client) -> None:
    rebound = {"origin": "http://a.example", "host": "a.example"}
    assert client.post("/v1/search", json=SEARCH, headers=rebound).status_code == 403
    # A browser takes such a page for the server's own: it may read replies, and sends no Origin where it does.
    for path in ("/v1/generations", "/v1/jobs", "/v1/judgements", "/docs"):
        refused = client.get(path, headers={"host": "a.example"})
        assert refused.status_code == 403 and "not as a.example" in refused.text, path


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:9", 200),
        ("[::1]:8000", 200),
        ("127.0.0.1.a.example", 403),
        ("localhost.a.example:80", 403),
        ("192.168.0.7:8000", 200),
        ("0.0.0.0:8000", 200),
        ("localhost.", 200),
        ("hone.localhost:8000", 200),
        ("notlocalhost", 403),
        ("host.docker.internal", 403),
        ("[", 403),
    ],
)
def test_on_loopback_a_server_is_asked_by_a_name_of_loopback(client: httpx2.Client, host: str, status: int) -> None:
    assert client.get("/v1/generations", headers={"host": host}).status_code == status


def test_what_a_proxy_lets_in_may_name_the_proxy(tmp_path: Path) -> None:
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    with (
        listening(store, ServerConfig(proxied=True), OPENERS) as port,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers={"host": "hone.example"}) as client,
    ):
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/v1/search", json=SEARCH).status_code == 200
        assert client.post("/v1/search", json=SEARCH, headers={"origin": "https://hone.example"}).status_code == 200
        assert client.post("/v1/search", json=SEARCH, headers={"origin": "http://a.example"}).status_code == 403


def test_behind_another_address_the_page_of_its_own_name_may_ask(tmp_path: Path) -> None:
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    with serving(store) as server:  # which is reached as "testserver", no address of loopback
        own = {"origin": "http://hone.example", "host": "hone.example"}
        assert server.client.post("/v1/search", json=SEARCH, headers=own).status_code == 200
        other = {**own, "origin": "http://else.example"}
        assert server.client.post("/v1/search", json=SEARCH, headers=other).status_code == 403
