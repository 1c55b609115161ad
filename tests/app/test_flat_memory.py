"""The promise that a server that is asked for long takes no more memory or descriptors than one that was just warm."""

import sys
import threading
import time
from pathlib import Path

import pytest

from tests.app.serve_process import BODY, ask, free_port, served

pytestmark = [pytest.mark.soak, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

WARM_SECONDS, SECONDS = 120, 1200
CLIENTS = 2
MOST_GROWTH = 1.05
REQUESTS = (
    ("POST", "/v1/search", BODY),
    ("GET", "/v1/jobs", None),
    ("GET", "/v1/generations", None),
    ("GET", "/metrics", None),
)


def used(pid: int) -> tuple[int, int]:
    """Resident bytes that are the process's own, and open descriptors."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])
    return 1024 * kilobytes, len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.timeout(SECONDS + 600)
def test_twenty_minutes_of_load_leave_memory_and_descriptors_flat(indexed: Path) -> None:
    port, stop, answers = free_port(), threading.Event(), list[int]()

    def load() -> None:
        while not stop.is_set():
            answers.extend(ask(port, method, path, body)[0] for method, path, body in REQUESTS)

    with served(indexed, port, "--drain-seconds", "0") as server:
        clients = [threading.Thread(target=load) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(WARM_SECONDS)
        memory, descriptors = used(server.pid)
        time.sleep(SECONDS - WARM_SECONDS)
        memory_after, descriptors_after = used(server.pid)
        stop.set()
        for client in clients:
            client.join()
    print(f"{len(answers)} answers; {memory >> 20} → {memory_after >> 20} MiB, {descriptors} → {descriptors_after} fds")
    assert set(answers) == {200}
    assert memory_after <= MOST_GROWTH * memory and abs(descriptors_after - descriptors) <= 2 * CLIENTS
