"""`hone serve` as a real process, and how to ask it. They do not know pytest."""

import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.app.served import wait_for

BODY = json.dumps({"queries": ["ba ka"], "top_k": 3})
JSON = {"content-type": "application/json"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def ask(port: int, method: str, path: str, body: str | None = None, headers: dict[str, str] = JSON) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def is_ready(port: int) -> bool:
    try:
        return ask(port, "GET", "/readyz")[0] == 200
    except OSError:
        return False


@contextmanager
def served(store: Path, port: int, *arguments: str, through: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """Run `hone serve` on ``port``, by the command ``through`` if there is one; what it logs goes beside the store."""
    command = [
        *through,
        sys.executable,
        "-m",
        "app.cli",
        "serve",
        "--store",
        str(store),
        "--port",
        str(port),
        "--job-priority",
        "normal",  # a busy machine is not a bug, and idle jobs would wait for it
        *arguments,
    ]
    with (store.parent / f"serve-{port}.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
        try:
            wait_for(lambda: is_ready(port), seconds=90, every=0.1)
            yield process
        finally:
            process.terminate()
            assert process.wait(60) in (0, -signal.SIGTERM, -signal.SIGKILL)
