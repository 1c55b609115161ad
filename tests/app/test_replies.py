import re
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from app import hidden_paths
from app.replies import ERROR_TYPES, ErrorBody, errors, reply
from retriever.errors import CorruptError
from tests.app.served import Server

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "named"),
    [
        (b'{"inputs": ', JSON, 400, "not JSON"),
        (b"\xff", JSON, 400, "parsing the body"),
        (b"", JSON, 422, "body"),
        (b"[]", JSON, 422, "body"),
        (b'{"inputs": "a"}', {"content-type": "application/x-www-form-urlencoded"}, 415, "application/json"),
        (b'{"inputs": "a"}', {"content-type": "text/plain"}, 415, "application/json"),
        (b'{"inputs": 1, "more": 2}', JSON, 422, "1 more"),
    ],
)
def test_every_error_has_the_one_body(
    server: Server, content: bytes, headers: dict[str, str], status: int, named: str
) -> None:
    response = server.client.post("/v1/encode", content=content, headers=headers)
    body = ErrorBody.model_validate_json(response.content)
    assert (response.status_code, body.error_type) == (status, ERROR_TYPES[status])
    assert named in body.error and body.request_id == response.headers["x-request-id"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/no/route", 404), ("GET", "/v1/search", 405)])
def test_errors_of_the_router_too(server: Server, method: str, path: str, status: int) -> None:
    response = server.client.request(method, path)
    assert response.status_code == status
    assert ErrorBody.model_validate_json(response.content).error_type == ERROR_TYPES[status]


def test_problems_are_listed_in_bounds_and_never_echo_the_input(server: Server) -> None:
    body = server.post("/v1/encode", {"inputs": [1234567] * 50}, 422)
    assert len(body["detail"]) == 10 and "49 more" in body["error"]
    assert body["detail"][3]["field"] == "body.inputs.3"
    assert "1234567" not in str(body)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/search", {"vectors": [[0.0] * 32], "space": "/etc/a " * 36}, 409),
        ("/v1/search", {"vectors": [[0.0] * 32], "space": "/etc/a " * 50_000}, 413),
        ("/v1/mine", {"queries": ["a"], "sources": ["/etc/a " * 50_000]}, 422),
    ],
)
def test_what_a_client_sent_is_repeated_and_looked_up_in_bounds(
    server: Server, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], status: int
) -> None:
    """Each path in a message costs a look at the disk, on the loop that all requests share."""
    looked: list[Path] = []

    def exists(one: Path) -> bool:
        looked.append(one)
        return True

    monkeypatch.setattr(hidden_paths, "_exists", exists)
    response = server.client.post(path, json=body)
    assert response.status_code == status and len(response.content) < 10_000
    assert len(looked) < 500


def test_an_artifact_that_went_away_is_worth_another_try(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise CorruptError("vectors/00000.npy: missing")

    monkeypatch.setattr(server.app.state.service.serving.snapshot.searcher, "search", gone)
    response = server.client.post("/v1/search", json={"queries": "a"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert response.json()["error"] == "vectors/00000.npy: missing"


def test_float32_is_written_with_its_own_digits() -> None:
    body = reply({"scores": np.array([0.1, 1 / 3], np.float32), "one": np.float32(0.1)}).body
    assert body == b'{"scores":[0.1,0.33333334],"one":0.1}'
    assert np.array_equal(np.array(orjson.loads(body)["scores"], np.float32), np.array([0.1, 1 / 3], np.float32))


def test_the_page_on_operations_lists_each_status_with_its_type() -> None:
    page = Path(__file__).parents[2] / "docs" / "operations.md"
    rows = [
        line.split("|")[1:3] for line in page.read_text(encoding="utf-8").splitlines() if re.match(r"\| \d{3}", line)
    ]
    listed = [pair for row in rows for pair in zip(*(cell.strip().split(", ") for cell in row), strict=True)]
    assert listed == [(str(status), kind) for status, kind in ERROR_TYPES.items()]


def test_documented_errors_include_500_and_name_retry_after() -> None:
    assert set(errors(404, 503)) == {404, 500, 503}
    assert "Retry-After" in errors(503)[503]["headers"]
    assert all(entry["model"] is ErrorBody for entry in errors(400, 422).values())
