"""The HTTP server: its routes, what surrounds them, and the threads that live as long as it does.

Does not know how to listen on a port, nor where its encoders come from.
"""

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Event, Thread
from typing import TextIO

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi_offline import FastAPIOffline
from sqlalchemy.exc import SQLAlchemyError

from app import draining
from app.admission import Admission, AdmissionConfig
from app.allowance import spend
from app.authorization import Authorize, document_keys
from app.foreign_pages import RefuseForeignPages
from app.job_processes import JobProcesses, job_command
from app.jobs import Jobs
from app.judgements import Judgements
from app.keys import Keys
from app.middleware import BodyLimit, Observe
from app.mining_job import MINE
from app.recall_meter import RecallMeter
from app.replies import register_errors
from app.routes import encode, generations, health, mine, openai, rerank, search, text_embeddings
from app.routes import jobs as jobs_routes
from app.routes import judgements as judgements_routes
from app.service import Service
from app.snapshot import POLL_SECONDS, Openers, Serving, Snapshot
from app.telemetry import Telemetry
from retriever.errors import HoneError, StoreError
from retriever.store import Store, code_version

REAP_SECONDS = 0.5
DESCRIPTION = (
    "Search, encode and mine with the newest generation of the index that passed its gate. "
    "Each answer comes from one generation and names it."
)


@dataclass(frozen=True)
class ServerConfig:
    """Knobs of the server; ``job_command`` runs one job when its id is appended (default: `hone index`).

    ``job_environment`` is that of its process (default: this one's).
    Where there are ``keys``, each request must bring one; ``proxied``: something in front decides who is let in.
    ``load_first``: nothing is let in before the first attempt to load what SERVED names, since other workers behind the
    same socket can answer meanwhile.
    """

    max_body_bytes: int = 32 << 20
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    poll_seconds: float = POLL_SECONDS
    job_command: tuple[str, ...] | None = None
    job_environment: Mapping[str, str] | None = None
    log_stream: TextIO | None = None
    keys: Keys | None = None
    load_first: bool = False
    proxied: bool = False


def create_app(config: ServerConfig, store: Store, openers: Openers, jobs: Jobs) -> FastAPI:
    """Return the server over ``store``; it begins to load what SERVED names when it is started."""
    telemetry = Telemetry(config.log_stream)
    admission = Admission(config.admission, telemetry.log, telemetry.count_batch, spend)

    def check(snapshot: Snapshot) -> None:
        config.admission.check_longest(snapshot.models.longest)

    serving = Serving(store, openers, telemetry.log, telemetry.count_swap, config.poll_seconds, check)
    command = config.job_command or job_command(store.root)
    processes = JobProcesses(
        jobs, command, telemetry.log, takes=store.is_writable(), environment=config.job_environment
    )
    service = Service(serving, jobs, processes, telemetry, admission, RecallMeter(telemetry), Judgements(jobs.url))
    _watch(telemetry, store, service)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        stop = Event()
        reaper = Thread(target=_reap, args=(service, stop), name="reap-jobs", daemon=True)
        admission.start()
        if config.load_first:
            await run_in_threadpool(serving.catch_up)
        serving.start()
        reaper.start()
        service.recall.start()
        yield
        stop.set()
        reaper.join()
        service.recall.stop()
        serving.stop()
        admission.stop()
        processes.release()
        service.judgements.close()

    # /docs as FastAPI makes it, but with its scripts and styles from this server: it may see no other.
    about = {"title": "hone", "version": code_version(), "description": DESCRIPTION}
    app = FastAPIOffline(**about, redoc_url=None, lifespan=lifespan)
    app.state.service, app.state.store = service, store
    draining.set_up(app)
    own = (search, encode, mine, judgements_routes, generations, jobs_routes)
    for routes in (*own, openai, rerank, text_embeddings, health):
        app.include_router(routes.router)
    register_errors(app)
    app.add_middleware(BodyLimit, limit=config.max_body_bytes)
    if config.keys is not None:
        app.add_middleware(Authorize, keys=config.keys)
        document_keys(app)
    else:
        app.add_middleware(RefuseForeignPages, proxied=config.proxied)
    app.add_middleware(Observe, telemetry=telemetry)
    return app


def _reap(service: Service, stop: Event) -> None:
    while not stop.wait(REAP_SECONDS):
        try:
            service.telemetry.refresh()
            service.processes.tend()
            _count_mined(service)
        except (OSError, SQLAlchemyError, HoneError) as error:  # what is away for a moment must not end the watch
            service.telemetry.log.error("jobs_untended", reason=str(error))


def _count_mined(service: Service) -> None:
    """Count what mining jobs made, wherever they ran: each job in one of all the processes that share the table."""
    for made in service.jobs.newly_done(MINE):  # another version's may not say
        service.telemetry.count_mined(made.get("negatives", 0), made.get("filtered", {}))


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
        except (StoreError, OSError) as error:
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

    telemetry.watch(
        "hone_queue_tokens", "Tokens that wait for the model.", lambda: service.admission.queued_tokens, over="sum"
    )
    telemetry.watch("hone_generation_number", "Number of the generation that is served.", number)
    telemetry.watch("hone_generation_age_seconds", "Seconds since it was published.", age_seconds)
    telemetry.watch("hone_staleness_steps", "Training steps from it to the newest checkpoint.", staleness_steps)
    telemetry.watch_each("hone_jobs", "Jobs by state.", "state", job_states)
