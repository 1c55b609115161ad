"""Puts the server over a store on a port.

Does not know routes or snapshots.
"""

import gc
import socket
from pathlib import Path

import uvicorn

from app.jobs import Jobs
from app.opening import openers
from app.server import ServerConfig, check_bind, create_app
from app.settings import database_url
from retriever.errors import InputError
from retriever.store import Store

DRAIN_SECONDS = 30


def serve_store(root: Path, host: str, port: int, *, insecure: bool = False, ranker: Path | None = None) -> None:
    """Serve the store at ``root`` until a signal; requests in flight are finished first.

    ``ranker`` is the folder of a ranker for generations that hold none.

    Raises InputError for a folder that is no store, for an address that others can reach unless ``insecure``, and for
    one that cannot be listened on.
    """
    check_bind(host, insecure)
    store = Store(root)
    _check_free(host, port)
    jobs = Jobs(database_url(root))
    try:
        gc.collect()
        gc.freeze()  # what was imported stays: without this, looking through it for garbage holds up all requests
        app = create_app(ServerConfig(), store, openers(ranker), jobs)
        uvicorn.run(app, host=host, port=port, log_config=None, timeout_graceful_shutdown=DRAIN_SECONDS)
    finally:
        jobs.close()


def _check_free(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --host or --port"
        ) from error
