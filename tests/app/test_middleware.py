import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.server import ServerConfig
from tests.app.served import Server, listening, new_store, publish_generation, serving

LIMIT = 2000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    store, corpus = new_store(tmp_path)
    publish_generation(store, corpus)
    with serving(store, ServerConfig(max_body_bytes=LIMIT)) as server:

        @server.app.get("/broken")
        def broken() -> None:
            raise RuntimeError("the reason that only the log knows")

        yield server


def test_a_client_s_request_id_is_kept(server: Server) -> None:
    response = server.client.get("/v1/jobs/none", headers={"x-request-id": "abc-1"})
    assert response.headers["x-request-id"] == response.json()["request_id"] == "abc-1"
    (line,) = server.log_lines("request")
    assert (line["request_id"], line["status"], line["path"]) == ("abc-1", 404, "/v1/jobs/none")


@pytest.mark.parametrize("offered", ["", "a b", "x" * 129, 'a"b'])
def test_an_odd_request_id_is_replaced(server: Server, offered: str) -> None:
    given = server.client.get("/livez", headers={"x-request-id": offered}).headers["x-request-id"]
    assert given != offered and len(given) == 32


def test_answers_name_the_generation_that_they_come_from(server: Server) -> None:
    search = server.client.post("/v1/search", json={"queries": "alpha"})
    refused = server.client.post("/v1/mine", json={"queries": [{"id": "q", "text": "a", "positives": ["gone"]}]})
    assert search.headers["x-hone-generation"] == refused.headers["x-hone-generation"] == "0"
    assert refused.status_code == 422
    assert "x-hone-generation" not in server.client.get("/livez").headers


def test_an_unexpected_error_is_logged_and_answered_without_its_reason(server: Server) -> None:
    response = server.client.get("/broken")
    body = response.json()
    assert (response.status_code, body["error_type"]) == (500, "internal")
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["request_id"] in body["error"] and "reason" not in body["error"]
    (line,) = server.log_lines("request_failed")
    assert line["request_id"] == body["request_id"] and "only the log knows" in line["exception"]
    assert server.metric("hone_requests_total", route="/broken", method="GET", status="500") == 1


def test_requests_are_counted_by_route_not_by_path(server: Server) -> None:
    for path in ("/v1/jobs/a", "/v1/jobs/b", "/nowhere", "/neither"):
        server.client.get(path)
    assert server.client.request("BREW", "/livez").status_code == 405
    assert server.metric("hone_requests_total", route="/v1/jobs/{job_id}", method="GET", status="404") == 2
    assert server.metric("hone_requests_total", route="none", method="GET", status="404") == 2
    assert server.metric("hone_request_seconds_count", route="/v1/jobs/{job_id}") == 2
    assert server.metric("hone_requests_total", route="/livez", method="other", status="405") == 1


def test_a_declared_body_above_the_limit_is_too_large(server: Server) -> None:
    fits, response = (server.client.post("/v1/encode", content=b" " * size) for size in (LIMIT, LIMIT + 1))
    assert (fits.status_code, response.status_code) == (415, 413)
    assert response.json()["error_type"] == "too_large" and f"{LIMIT} bytes" in response.json()["error"]
    assert "x-request-id" in response.headers


@pytest.mark.parametrize("chunks", [3, 1000])
def test_a_body_of_undeclared_length_is_counted(server: Server, chunks: int) -> None:
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(chunks):
            sent += 1
            yield b" " * 1000

    response = server.client.post("/v1/encode", content=body(), headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error_type"]) == (413, "too_large")
    assert f"{LIMIT} bytes" in response.json()["error"]


def test_a_raw_client_that_sends_too_much_still_gets_the_answer(tmp_path: Path) -> None:
    """A server that closes at once would break the connection under the client, who is still sending."""
    store, _ = new_store(tmp_path)
    limit = 4 << 20
    with listening(store, ServerConfig(max_body_bytes=limit)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/v1/encode", b" " * (2 * limit), {"content-type": "application/json"})
        response = connection.getresponse()
        assert response.status == 413 and f"{limit} bytes" in response.read().decode()
        connection.close()
