"""A uvicorn server on a thread of a contestant, on a free port. Does not know what it serves."""

import threading
import time
from typing import Any

import uvicorn

SECONDS = 60


def serve(app: Any) -> int:
    """Serve ``app`` until the process ends and return its port. Raises TimeoutError if it does not start."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    threading.Thread(target=server.run, daemon=True).start()
    end = time.monotonic() + SECONDS
    while not server.started:
        if time.monotonic() > end:
            raise TimeoutError("the server does not start")
        time.sleep(0.01)
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port
