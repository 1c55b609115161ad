"""Promises of `hone serve` as real processes: several workers count as one, and a rolling restart loses no request."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from app.jobs import Jobs
from app.keys import Keys
from app.server import REAP_SECONDS
from app.serving import cpus
from app.settings import database_url
from tests.app.serve_process import BODY, JSON, ask, free_port, is_ready, served
from tests.app.served import wait_for

pytestmark = pytest.mark.slow


def children(pid: int) -> list[int]:
    """The processes that ``pid`` started and that map an index."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid and "index.faiss" in maps(path.parent.name):
                found.append(int(path.parent.name))
        except OSError:  # ended meanwhile
            continue
    return found


def maps(pid: str | int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_several_workers_share_index_threads_and_metrics(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    port = free_port()
    with served(indexed, port, "--workers", "2", "--drain-seconds", "0") as server:
        wait_for(lambda: len(children(server.pid)) == 2, seconds=60, every=0.2)
        workers = children(server.pid)
        mapped = {line for pid in workers for line in re.findall(r".*index\.faiss", maps(pid))}
        assert {line.split()[1] for line in mapped} <= {"r--s", "r--p"}, "mapped for reading, so one copy in memory"
        for pid in workers:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            assert f"OMP_NUM_THREADS={max(1, cpus() // 2)}".encode() in environment
        for _ in range(40):
            assert ask(port, "POST", "/v1/search", BODY)[0] == 200
        counted = 'hone_requests_total{method="POST",route="/v1/search",status="200"} 40.0'
        for _ in range(10):  # whichever worker answers
            text = ask(port, "GET", "/metrics")[1]
            assert counted in text and "hone_generation_number 0.0" in text and "hone_jobs" in text
        os.kill(workers[0], signal.SIGKILL)
        wait_for(lambda: len(set(children(server.pid)) - {workers[0]}) == 2, seconds=60, every=0.2)
        assert ask(port, "POST", "/v1/search", BODY)[0] == 200
        assert counted.replace("40.0", "41.0") in ask(port, "GET", "/metrics")[1], "counts outlive a worker"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_job_of_one_of_several_workers_has_all_threads_and_is_counted_once(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    port = free_port()
    queries = [{"id": f"q{number}", "text": "ba ka", "positives": []} for number in range(40)]
    body = json.dumps({"queries": queries, "num_negatives": 2, "depth": 5, "range_min": 1, "job": "hone"})
    with served(indexed, port, "--workers", "2", "--drain-seconds", "0"):
        place = f"/v1/jobs/{json.loads(ask(port, 'POST', '/v1/mine', body)[1])['id']}"
        with closing(Jobs(database_url(indexed))) as jobs:
            pid = jobs.get(place.rpartition("/")[2]).pid
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"OMP_NUM_THREADS=6" in environment, "not a worker's 3"
        assert not [one for one in environment if one.startswith((b"MKL_NUM_THREADS", b"PROMETHEUS_MULTIPROC_DIR"))]
        wait_for(
            lambda: json.loads(ask(port, "GET", place)[1])["state"] not in ("queued", "running"), seconds=90, every=0.1
        )
        done = json.loads(ask(port, "GET", place)[1])
        assert done["state"] == "done", done
        counted = f"hone_mined_negatives_total {float(done['result']['negatives'])}"
        assert done["result"]["negatives"] == 80 and done["result"]["filtered"]["range"] == 40
        wait_for(lambda: counted in ask(port, "GET", "/metrics")[1], every=0.1)
        time.sleep(3 * REAP_SECONDS)  # the other one has looked as well
        for _ in range(5):  # whichever worker answers
            text = ask(port, "GET", "/metrics")[1]
            assert counted in text
            for reason, count in done["result"]["filtered"].items():
                assert f'hone_filtered_negatives_total{{reason="{reason}"}} {float(count)}\n' in text


class Balancer:
    """Sends each request to a server that says it is ready, asked ten times a second, as Kubernetes' probes do."""

    def __init__(self, ports: list[int]) -> None:
        self.ports, self.ready = ports, set[int]()
        self.stop = threading.Event()
        self.counts: Counter[str] = Counter()

    def probe(self) -> None:
        while not self.stop.is_set():
            self.ready = {port for port in self.ports if is_ready(port)}
            self.stop.wait(0.1)

    def load(self) -> None:
        """Ask without retries over kept connections, until ``stop``."""
        connections: dict[int, http.client.HTTPConnection] = {}
        while not self.stop.is_set():
            port = min(self.ready, default=0)
            if not port:
                time.sleep(0.01)
                continue
            connection = connections.setdefault(port, http.client.HTTPConnection("127.0.0.1", port, timeout=30))
            self.counts["sent"] += 1
            try:
                connection.request("POST", "/v1/search", BODY, JSON)
                response = connection.getresponse()
                response.read()
                self.counts[f"status {response.status}"] += 1
            except (OSError, http.client.HTTPException) as error:
                self.counts[repr(error)] += 1
                connection.close()
        for connection in connections.values():
            connection.close()


def test_a_rolling_restart_under_load_loses_no_request(indexed: Path) -> None:
    ports = sorted(free_port() for _ in range(2))
    balancer = Balancer(ports)
    threads = [threading.Thread(target=balancer.probe), threading.Thread(target=balancer.load)]
    with served(indexed, ports[1], "--drain-seconds", "0"):
        with served(indexed, ports[0], "--drain-seconds", "1") as first:
            for thread in threads:
                thread.start()
            wait_for(lambda: balancer.counts["status 200"] > 50)
            first.send_signal(signal.SIGTERM)
            wait_for(lambda: ports[0] not in balancer.ready)
            first.wait(30)
        after = balancer.counts["sent"]
        wait_for(lambda: balancer.counts["sent"] > after + 50)
        balancer.stop.set()
        for thread in threads:
            thread.join()
    assert balancer.counts == {"sent": balancer.counts["sent"], "status 200": balancer.counts["sent"]}


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except ConnectionRefusedError:
        return True
    return False


def test_while_workers_finish_what_they_have_begun_nobody_new_is_left_waiting(indexed: Path) -> None:
    """What has begun is a request whose body is still to come."""
    port = free_port()
    with (
        served(indexed, port, "--workers", "2", "--drain-seconds", "0") as server,
        socket.create_connection(("127.0.0.1", port), timeout=30) as slow,
    ):
        head = "POST /v1/search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        slow.sendall(f"{head}content-length: {len(BODY)}\r\n\r\n{BODY[:5]}".encode())
        time.sleep(0.5)  # a worker has it
        server.send_signal(signal.SIGTERM)
        wait_for(lambda: is_refused(port), seconds=15)
        assert server.poll() is None
        slow.sendall(BODY[5:].encode())
        assert slow.recv(100).startswith(b"HTTP/1.1 200")


def test_a_public_address_asks_for_keys(indexed: Path) -> None:
    keys = Keys(database_url(indexed))
    secret, _ = keys.create("ann", ["search"])
    keys.close()
    port = free_port()
    with served(indexed, port, "--host", "0.0.0.0", "--drain-seconds", "0"):
        assert ask(port, "POST", "/v1/search", BODY)[0] == 401
        assert ask(port, "POST", "/v1/search", BODY, JSON | {"authorization": f"Bearer {secret}"})[0] == 200
        with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
            raw.sendall(b"no HTTP at all\r\n\r\n")
            raw.recv(100)
    log = (indexed.parent / f"serve-{port}.log").read_text()
    assert secret not in log and '"status": 401' in log and "Invalid HTTP request" in log
    for line in log.splitlines()[1:]:
        json.loads(line)


READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 77; shift; exec "$@"'


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a store for one process")
def test_a_store_that_is_mounted_for_reading_alone_is_served_and_its_jobs_wait(
    indexed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the manifests of k8s mount it."""
    through = ("unshare", "--mount", "sh", "-c", READ_ONLY, "sh", str(indexed))
    if subprocess.run([*through, "true"], check=False).returncode != 0:
        pytest.skip("mounting a store for reading alone needs the right to mount, as root or in a user namespace")
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'jobs.db'}")
    before = sorted(path for path in indexed.rglob("*"))
    port = free_port()
    with served(indexed, port, "--drain-seconds", "0", through=through):
        status, text = ask(port, "POST", "/v1/search", BODY)
        assert status == 200 and json.loads(text)["generation"] == 0
        status, text = ask(port, "POST", "/v1/index/rebuild")
        job = json.loads(text)["id"]
        assert status == 202
        time.sleep(2)
        assert json.loads(ask(port, "GET", f"/v1/jobs/{job}")[1])["state"] == "queued"
    assert sorted(path for path in indexed.rglob("*")) == before
