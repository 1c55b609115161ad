"""A load generator: closed loops, which ask as fast as they are answered, and open ones, at a constant arrival rate.

Does not know servers or peers: bytes out, a status in. A request's time runs from when it was due, so that waiting for
a connection counts.
"""

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass
class Load:
    """What came of a load: seconds it took, and of each request milliseconds and whether it failed."""

    seconds: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def rate(self) -> float:
        """Requests answered per second."""
        return len(self.milliseconds) / self.seconds

    def quantile(self, share: float) -> float:
        """Return the time in milliseconds within which ``share`` of the requests were answered."""
        ordered = sorted(self.milliseconds)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def post(port: int, path: str, body: bytes) -> bytes:
    """Return a request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def closed(port: int, requests: Iterator[bytes], clients: int, seconds: float) -> Load:
    """Let ``clients`` ask one of ``requests``, which do not end, after the other for ``seconds``."""
    return asyncio.run(_run(port, requests, clients, seconds, None))


def steady(port: int, requests: Iterator[bytes], clients: int, seconds: float, rate: float) -> Load:
    """Ask ``rate`` of ``requests`` a second over ``clients`` connections for ``seconds``."""
    return asyncio.run(_run(port, requests, clients, seconds, rate))


async def _run(port: int, requests: Iterator[bytes], clients: int, seconds: float, rate: float | None) -> Load:
    load = Load()
    began = time.perf_counter()
    end, due = began + seconds, iter(_due(began, seconds, rate))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while True:
            at = next(due, None)
            if at is None or (rate is None and time.perf_counter() >= end):
                break
            if rate is not None:
                await asyncio.sleep(max(0.0, at - time.perf_counter()))
            else:
                at = time.perf_counter()
            writer.write(next(requests))
            ok = await _answered(reader)
            load.milliseconds.append(1000 * (time.perf_counter() - at))
            load.failed += not ok
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - began
    return load


def _due(began: float, seconds: float, rate: float | None) -> Sequence[float]:
    """Return when requests are due; with no rate, more of them than can be asked."""
    if rate is None:
        return range(1 << 40)
    return [began + place / rate for place in range(int(rate * seconds))]


async def _answered(reader: asyncio.StreamReader) -> bool:
    """Read one answer that tells its length; tell whether its status is 200."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, _, rest = head.partition(b"content-length:")
    await reader.readexactly(int(rest.partition(b"\r\n")[0]))
    return head.startswith(b"http/1.1 200")
