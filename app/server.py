"""The HTTP server: its routes, what surrounds them, and the threads that live as long as it does.

Does not know how to listen on a port, nor where its encoders come from.
"""

import ipaddress
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Event, Thread
from typing import TextIO

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from sqlalchemy.exc import SQLAlchemyError

from app.admission import Admission, AdmissionConfig
from app.job_processes import JobProcesses, rebuild_command
from app.jobs import Jobs
from app.middleware import BodyLimit, Observe
from app.replies import register_errors
from app.routes import encode, health, mine, openai, rerank, search, text_embeddings
from app.routes import jobs as jobs_routes
from app.service import Service
from app.snapshot import POLL_SECONDS, Openers, Serving, Snapshot
from app.telemetry import Telemetry
from retriever.errors import InputError, StoreError
from retriever.store import Store, code_version

REAP_SECONDS = 0.5
DESCRIPTION = (
    "Search, encode and mine with the newest generation of the index that passed its gate. "
    "Each answer comes from one generation and names it."
)


@dataclass(frozen=True)
class ServerConfig:
    """Knobs of the server; ``job_command`` runs one job when its id is appended (default: `hone index`)."""

    max_body_bytes: int = 32 << 20
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    poll_seconds: float = POLL_SECONDS
    job_command: tuple[str, ...] | None = None
    log_stream: TextIO | None = None


def create_app(config: ServerConfig, store: Store, openers: Openers, jobs: Jobs) -> FastAPI:
    """Return the server over ``store``; it begins to load what SERVED names when it is started."""
    telemetry = Telemetry(config.log_stream)
    admission = Admission(config.admission, telemetry.log, telemetry.count_batch)

    def check(snapshot: Snapshot) -> None:
        config.admission.check_longest(snapshot.models.longest)

    serving = Serving(store, openers, telemetry.log, telemetry.count_swap, config.poll_seconds, check)
    processes = JobProcesses(jobs, config.job_command or rebuild_command(store.root), telemetry.log)
    service = Service(serving, jobs, processes, telemetry, admission)
    _watch(telemetry, store, service)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        stop = Event()
        reaper = Thread(target=_reap, args=(service, stop), name="reap-jobs", daemon=True)
        admission.start()
        serving.start()
        reaper.start()
        yield
        stop.set()
        reaper.join()
        serving.stop()
        admission.stop()
        processes.release()

    # /docs as FastAPI makes it, but with its scripts and styles from this server: it may see no other.
    about = {"title": "hone", "version": code_version(), "description": DESCRIPTION}
    app = FastAPIOffline(**about, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    for routes in (search, encode, mine, openai, rerank, text_embeddings, jobs_routes, health):
        app.include_router(routes.router)
    register_errors(app)
    app.add_middleware(BodyLimit, limit=config.max_body_bytes)
    app.add_middleware(Observe, telemetry=telemetry)
    return app


def check_bind(host: str, insecure: bool) -> None:
    """Raise InputError for an address that others can reach, unless ``insecure`` says that they may."""
    if insecure or host == "localhost":
        return
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        pass  # a name, which may stand for any address
    raise InputError(
        f"host {host!r} can be reached from other machines and this server asks for no keys; "
        "use 127.0.0.1, or say --insecure if something in front of it asks for them"
    )


def _reap(service: Service, stop: Event) -> None:
    while not stop.wait(REAP_SECONDS):
        try:
            service.processes.reap()
        except SQLAlchemyError as error:  # a database that is away for a moment must not end the watch
            service.telemetry.log.error("jobs_unreadable", reason=str(error))


def _watch(telemetry: Telemetry, store: Store, service: Service) -> None:
    """Add the gauges that are read at each scrape."""

    def age_seconds() -> float:
        snapshot = service.serving.snapshot
        if snapshot is None:
            return math.nan
        created = datetime.strptime(snapshot.generation.manifest["created"], "%Y-%m-%dT%H:%M:%S%z")
        return (datetime.now(UTC) - created).total_seconds()

    def staleness_steps() -> float:
        snapshot = service.serving.snapshot
        try:
            newest = store.checkpoints.get()
        except StoreError as error:
            telemetry.log.error("checkpoint_unreadable", reason=str(error))
            return math.nan
        if snapshot is None or newest is None:
            return math.nan
        return float(newest.facts["step"] - snapshot.generation.facts["step"])

    def job_states() -> Mapping[str, int]:
        try:
            return service.jobs.counts()
        except SQLAlchemyError as error:
            telemetry.log.error("jobs_unreadable", reason=str(error))
            return {}

    def number() -> float:
        served = service.serving.number
        return math.nan if served is None else float(served)

    telemetry.watch("hone_queue_tokens", "Tokens that wait for the model.", lambda: service.admission.queued_tokens)
    telemetry.watch("hone_generation_number", "Number of the generation that is served.", number)
    telemetry.watch("hone_generation_age_seconds", "Seconds since it was published.", age_seconds)
    telemetry.watch("hone_staleness_steps", "Training steps from it to the newest checkpoint.", staleness_steps)
    telemetry.watch_each("hone_jobs", "Jobs by state.", "state", job_states)
