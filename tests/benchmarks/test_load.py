import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

import pytest

from benchmarks.load import Load, closed, post, steady


class Server(ThreadingHTTPServer):
    """Answers with ``status``, counts connections and keeps the bodies."""

    status, connections = 200, 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.port: int = self.server_address[1]
        self.bodies: list[int] = []


class Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        self.server.bodies.append(int(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def requests(port: int) -> Iterator[bytes]:
    return (post(port, "/asked", str(number).encode()) for number in count())


def test_a_constant_rate_asks_for_its_requests_in_order_and_once_each(server: Server) -> None:
    load = steady(server.port, requests(server.port), clients=1, seconds=0.2, rate=100)
    assert server.bodies == [*range(20)]
    assert len(load.milliseconds) == 20 and load.failed == 0


def test_clients_ask_over_a_connection_each_and_go_on_with_the_next_request(server: Server) -> None:
    source = requests(server.port)
    loads = [closed(server.port, source, clients=3, seconds=0.1) for _ in range(2)]
    asked = sum(len(load.milliseconds) for load in loads)
    assert server.connections == 6
    assert sorted(server.bodies) == [*range(asked)]


def test_an_answer_that_is_no_success_is_counted_as_failed(server: Server) -> None:
    server.status = 503
    load = steady(server.port, requests(server.port), clients=2, seconds=0.1, rate=100)
    assert load.failed == len(load.milliseconds) == 10


def test_a_quantile_is_a_time_within_which_that_share_was_answered() -> None:
    load = Load(2.0, [5.0, 1.0, 4.0, 2.0, 3.0])
    assert [load.quantile(share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 3.0, 5.0, 5.0]
    assert load.rate == 2.5
