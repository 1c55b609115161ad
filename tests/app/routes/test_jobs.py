import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.schemas import CancelReply, JobReply, JobsReply
from app.server import ServerConfig
from tests.app.served import Server, end_children, new_store, serving

SCRIPT = Path(__file__).parent.with_name("job_script.py")
ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Starts a server whose jobs act as told."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    store, _ = new_store(tmp_path)

    @contextmanager
    def start(action: str) -> Iterator[Server]:
        with serving(store, ServerConfig(job_command=(sys.executable, str(SCRIPT), action))) as server:
            try:
                yield server
            finally:
                end_children(server.app.state.service.processes)

    return start


def wait_for(server: Server, job_id: str, *states: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while (job := server.get(f"/v1/jobs/{job_id}"))["state"] not in states:
        assert time.monotonic() < deadline, job
        time.sleep(0.01)
    return job


def test_a_rebuild_is_accepted_followed_and_done(started: Callable[[str], Any]) -> None:
    with started("work") as server:
        response = server.client.post("/v1/index/rebuild")
        assert response.status_code == 202
        job = response.json()
        JobReply.model_validate_json(response.content)
        assert response.headers["location"] == f"/v1/jobs/{job['id']}"
        done = wait_for(server, job["id"], "done", "failed")
        assert (done["state"], done["result"], done["kind"]) == ("done", {"generation": 1}, "rebuild")
        assert done["created"] <= done["started"] <= done["updated"]
        assert server.post(f"/v1/jobs/{job['id']}/cancel", {}, 409)["error_type"] == "conflict"
        assert server.metric("hone_jobs", state="done") == 1


def test_a_second_rebuild_is_the_first_one_and_can_be_cancelled(started: Callable[[str], Any]) -> None:
    with started("slow") as server:
        job = server.post("/v1/index/rebuild", None, 202)
        assert server.post("/v1/index/rebuild", None, 200)["id"] == job["id"]
        wait_for(server, job["id"], "running")
        first, second = (server.client.post(f"/v1/jobs/{job['id']}/cancel").content for _ in range(2))
        assert CancelReply.model_validate_json(first).outcome == "CANCELLING"
        assert CancelReply.model_validate_json(second).outcome in ("CANCELLING", "NO_OP")
        assert wait_for(server, job["id"], "cancelled", "failed")["state"] == "cancelled"
        assert server.post(f"/v1/jobs/{job['id']}/cancel", None)["outcome"] == "NO_OP"


def test_a_job_that_waits_is_cancelled_at_once(started: Callable[[str], Any]) -> None:
    with started("hang") as server:
        job = server.post("/v1/index/rebuild", None, 202)
        answer = server.post(f"/v1/jobs/{job['id']}/cancel", None)
        assert (answer["outcome"], answer["job"]["state"]) == ("CANCELLED", "cancelled")


def test_a_crash_of_a_job_never_takes_the_server_down(started: Callable[[str], Any]) -> None:
    with started("crash") as server:
        job = server.post("/v1/index/rebuild", None, 202)
        failed = wait_for(server, job["id"], "failed")
        assert "SIGKILL" in failed["error"]
        assert server.get("/livez") == {"status": "live"}


def test_jobs_are_listed_newest_first_and_counted(started: Callable[[str], Any]) -> None:
    with started("crash") as server:
        made = []
        for _ in range(3):
            made.append(server.post("/v1/index/rebuild", None, 202)["id"])
            wait_for(server, made[-1], "failed")
        response = server.client.get("/v1/jobs?limit=2")
        JobsReply.model_validate_json(response.content)
        assert [job["id"] for job in response.json()["jobs"]] == made[:0:-1]
        assert response.json()["total"] == 3
        assert server.get("/v1/jobs?limit=0", 422)["error_type"] == "invalid"


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/jobs/none"), ("POST", "/v1/jobs/none/cancel")])
def test_an_unknown_job_is_not_found(server: Server, method: str, path: str) -> None:
    response = server.client.request(method, path)
    assert (response.status_code, response.json()["error_type"]) == (404, "not_found")
    assert "'none'" in response.json()["error"]


def heard(server: Server, job_id: str) -> list[tuple[str, dict[str, Any]]]:
    """Listen to a job's events until the stream ends."""
    with server.client.stream("GET", f"/v1/jobs/{job_id}/events") as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        text = "".join(response.iter_text())
    events = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return [(event["event"], json.loads(event["data"])) for event in events]


def test_a_job_s_events_tell_its_progress_and_its_end(started: Callable[[str], Any]) -> None:
    with started("slow") as server:
        job = server.post("/v1/index/rebuild", None, 202)
        wait_for(server, job["id"], "running")
        timer = threading.Timer(1.0, lambda: server.post(f"/v1/jobs/{job['id']}/cancel", None))
        timer.start()
        events = heard(server, job["id"])
        timer.join()
    assert [name for name, _ in events] == ["progress"] * (len(events) - 1) + ["end"]
    done = [state["done"] for _, state in events]
    assert len(events) > 3 and done == sorted(done) and events[-1][1]["state"] == "cancelled"


def test_the_events_of_a_job_that_has_ended_are_its_end(started: Callable[[str], Any]) -> None:
    with started("work") as server:
        job = server.post("/v1/index/rebuild", None, 202)
        wait_for(server, job["id"], "done")
        ((name, state),) = heard(server, job["id"])
        assert (name, state["result"]) == ("end", {"generation": 1})
        assert state == server.get(f"/v1/jobs/{job['id']}"), "the same job, to the form of its times"
        assert server.client.get("/v1/jobs/none/events").status_code == 404
