"""hone serve: a store on a port.

Does not know how HTTP works.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from app.admission import AdmissionConfig
from app.options import StoreOption, store_path
from app.priority import Priority
from app.serving import ServeOptions, serve_store
from app.settings import Settings


def serve(
    store: StoreOption = None,
    host: Annotated[str | None, typer.Option("--host", help="Default: $HONE_HOST, else 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Default: $HONE_PORT, else 8000.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Ask for no keys, wherever it listens: a proxy does.")
    ] = False,
    require_keys: Annotated[bool, typer.Option("--require-keys", help="Ask for keys on 127.0.0.1, too.")] = False,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes; they share index and cores.")] = 1,
    drain_seconds: Annotated[
        float, typer.Option("--drain-seconds", min=0, help="After SIGTERM, answer this long though not ready.")
    ] = 5.0,
    ranker: Annotated[
        Path | None, typer.Option("--ranker", help="Folder of a ranker; default: $HONE_RANKER, else the generation's.")
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option("--batch-tokens", min=1, help="Tokens that the model computes at once.")
    ] = AdmissionConfig.batch_tokens,
    queue_tokens: Annotated[
        int, typer.Option("--queue-tokens", min=1, help="Tokens that may wait; beyond, clients get 429.")
    ] = AdmissionConfig.queue_tokens,
    deadline_seconds: Annotated[
        float, typer.Option("--deadline-seconds", help="What waits longer gets 503 and is not computed.")
    ] = AdmissionConfig.deadline_seconds,
    job_priority: Annotated[
        Priority, typer.Option("--job-priority", help="Rebuilds and mining get idle cores alone, few, or their share.")
    ] = Priority.IDLE,
) -> None:
    """Serve a store over HTTP; follows SERVED, so a new generation is taken up without a restart."""
    settings = Settings()
    root = store_path(store)
    limits = AdmissionConfig(
        batch_tokens=batch_tokens,
        patient_batch_tokens=min(batch_tokens, AdmissionConfig.patient_batch_tokens),
        queue_tokens=queue_tokens,
        deadline_seconds=deadline_seconds,
    )
    options = ServeOptions(
        insecure, require_keys, workers, drain_seconds, ranker or settings.ranker, limits, job_priority
    )

    def tell(address: str) -> None:
        print(f"{address}  (docs at /docs; Ctrl-C stops it)", file=sys.stderr)

    serve_store(root, host or settings.host, settings.port if port is None else port, options, tell)
