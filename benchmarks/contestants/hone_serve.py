"""hone's server over a store. Does not know its peers."""

import gc
import os
import time
from pathlib import Path
from typing import Any

from app.jobs import Jobs
from app.opening import openers
from app.server import ServerConfig, create_app
from benchmarks.contest import compete
from benchmarks.contestants.serving_thread import serve
from retriever.store import Store


def load(store: str) -> dict[str, Any]:
    """Serve what SERVED names, ready; the log goes to a file, as a person would have it."""
    root = Path(store)
    gc.collect()
    gc.freeze()  # as `hone serve` does
    log = (root / "serve.log").open("w")
    app = create_app(ServerConfig(log_stream=log), Store(root), openers(), Jobs(f"sqlite:///{root / 'hone.db'}"))
    port = serve(app)
    while app.state.service.serving.snapshot is None:
        time.sleep(0.05)
    return {"port": port, "computed_by": app.state.service.serving.snapshot.encoder.computed_by}


if __name__ == "__main__":
    compete({"load": load}, ["fastapi", "uvicorn", "torch"])
    os._exit(0)  # the server's own threads would wait for requests for ever
