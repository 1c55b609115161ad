"""The promise that a rebuild, or mining, goes on after `kill -9` of its process, and of the server that started it."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app.indexing import index_data
from app.jobs import Job, Jobs
from app.mining_job import PART_QUERIES
from app.settings import database_url
from retriever.data import BLOCK_ROWS
from retriever.store import Store
from tests.app.command_line import silent
from tests.app.serve_process import BODY, ask, free_port, served
from tests.app.served import wait_for
from tests.stand_ins import write_tiny_data
from tests.tiny_model import write_tiny_model

pytestmark = pytest.mark.slow


def index_tiny(folder: Path, passages: int) -> Path:
    """Index so many passages below ``folder`` and return the store."""
    write_tiny_data(folder / "data", passages)
    write_tiny_model(folder / "model")
    changes = {"factory": "Flat", "precision": "fp32"}
    index_data(folder / "store", folder / "data", str(folder / "model"), changes, silent)
    return folder / "store"


@pytest.fixture(scope="module")
def emptied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 20,000 passages whose embeddings are gone, so that a rebuild has five blocks to encode."""
    root = index_tiny(tmp_path_factory.mktemp("emptied"), 20_000)
    for shard in Store(root).embeddings.rglob("*.*"):
        shard.unlink()
    return root


@pytest.fixture
def store(emptied: Path, tmp_path: Path) -> Path:
    """A copy of ``emptied``."""
    return shutil.copytree(emptied, tmp_path / "store")


@pytest.fixture
def jobs(store: Path) -> Iterator[Jobs]:
    with closing(Jobs(database_url(store))) as table:
        yield table


def rebuild(port: int) -> str:
    status, body = ask(port, "POST", "/v1/index/rebuild")
    assert status == 202
    job: dict[str, Any] = json.loads(body)
    return str(job["id"])


def when_a_block_is_done(jobs: Jobs, job_id: str) -> Job:
    """Wait until a block of passages is kept and the next is begun: its last report comes before it is written."""
    found: list[Job] = []

    def is_done() -> bool:
        found.append(jobs.get(job_id))
        assert found[-1].state in ("queued", "running"), found[-1].error
        return found[-1].phase == "encode" and found[-1].done > BLOCK_ROWS

    wait_for(is_done, seconds=120, every=0.05)
    return found[-1]


def ends_well(store: Path, jobs: Jobs, job_id: str) -> Job:
    """Wait for the job's end; the generation that it made has the bytes of the one before."""
    wait_for(lambda: jobs.get(job_id).state not in ("queued", "running"), seconds=120, every=0.05)
    job = jobs.get(job_id)
    assert job.state == "done" and job.result is not None, job.error
    generations = Store(store).generations
    assert job.result["generation"] == generations.pointed("SERVED") == 1
    generations.at(1).verify()
    assert generations.at(1).sha256("index.faiss") == generations.at(0).sha256("index.faiss")
    return job


def test_a_killed_job_is_begun_again_and_keeps_its_finished_blocks(store: Path, jobs: Jobs) -> None:
    port = free_port()
    with served(store, port, "--drain-seconds", "0"):
        job_id = rebuild(port)
        killed = when_a_block_is_done(jobs, job_id)
        assert killed.pid is not None
        os.kill(killed.pid, signal.SIGKILL)
        wait_for(lambda: jobs.get(job_id).attempts == 2, every=0.05)
        again = when_a_block_is_done(jobs, job_id)
        assert again.phase_offset >= BLOCK_ROWS, "what was encoded is not encoded again"
        assert ask(port, "POST", "/v1/search", BODY)[0] == 200
        assert ends_well(store, jobs, job_id).attempts == 2


def test_a_job_outlives_its_killed_server_and_the_next_one_watches_it(store: Path, jobs: Jobs) -> None:
    port = free_port()
    with served(store, port) as server:
        job_id = rebuild(port)
        running = when_a_block_is_done(jobs, job_id)
        server.kill()
        server.wait()
    with served(store, port, "--drain-seconds", "0"):
        assert ask(port, "POST", "/v1/index/rebuild")[0] in (200, 202)
        job = ends_well(store, jobs, job_id)
        assert (job.attempts, job.pid) == (1, running.pid)


def mined_bytes(port: int, jobs: Jobs, kill: bool) -> tuple[str, Job]:
    """Let a job mine for 2,048 queries, killing its process once in the middle if asked to; return its file."""
    queries = [{"id": f"q{i}", "text": f"ba {i} ka", "positives": [f"p{i % 9}"]} for i in range(2048)]
    body = json.dumps({"queries": queries, "job": "tevatron", "num_negatives": 2, "depth": 20})
    status, answer = ask(port, "POST", "/v1/mine", body)
    assert status == 202, answer
    job_id = str(json.loads(answer)["id"])
    if kill:
        wait_for(lambda: len(jobs.parts(job_id, "made")) >= 3, seconds=300)
        killed = jobs.get(job_id)
        assert killed.pid is not None and killed.state == "running"
        os.kill(killed.pid, signal.SIGKILL)
        wait_for(lambda: jobs.get(job_id).attempts == 2, every=0.05)
    wait_for(lambda: jobs.get(job_id).state not in ("queued", "running"), seconds=400, every=0.05)
    job = jobs.get(job_id)
    assert job.state == "done", job.error
    status, made = ask(port, "GET", f"/v1/jobs/{job_id}/result")
    assert status == 200
    return made, job


@pytest.mark.timeout(900)  # a job has a low priority: beside other work it takes minutes
def test_mining_goes_on_after_a_kill_and_gives_the_same_file(tmp_path: Path) -> None:
    small, port = index_tiny(tmp_path, 400), free_port()
    with closing(Jobs(database_url(small))) as jobs, served(small, port, "--drain-seconds", "0"):
        disturbed, job = mined_bytes(port, jobs, kill=True)
        undisturbed, other = mined_bytes(port, jobs, kill=False)
    assert job.attempts == 2 and job.phase_offset >= 3 * PART_QUERIES, "what was mined is not mined again"
    assert other.attempts == 1 and job.result == other.result
    assert disturbed == undisturbed and disturbed.count("\n") == 2048
