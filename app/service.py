"""What one server is made of, and how a route asks for it.

Does not know the routes.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from app.admission import Admission
from app.draining import is_draining
from app.job_processes import JobProcesses
from app.jobs import Jobs
from app.judgements import Judgements
from app.models import Computed
from app.recall_meter import RecallMeter
from app.replies import not_ready
from app.snapshot import Serving, Snapshot
from app.telemetry import Telemetry
from retriever.protocols import Side


@dataclass(frozen=True)
class Service:
    """The parts that live as long as the server."""

    serving: Serving
    jobs: Jobs
    processes: JobProcesses
    telemetry: Telemetry
    admission: Admission
    recall: RecallMeter
    judgements: Judgements
    mining: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    """Held while a chunk of queries is mined."""

    async def encode(
        self, snapshot: Snapshot, side: Side, texts: Sequence[str], *, patient: bool | None = None
    ) -> Computed:
        """Return vectors float32 [len(texts), dimensions] of ``snapshot``; raises what ``Models.encode`` does."""
        done = await snapshot.models.encode(self.admission, side, texts, patient=patient)
        self.telemetry.encoded.labels(side).inc(len(texts))
        return done

    async def score(self, snapshot: Snapshot, query: str, passages: Sequence[str]) -> Computed:
        """Return scores float32 [len(passages)] by the ranker; raises what ``Models.score`` does."""
        return await snapshot.models.score(self.admission, query, passages)


async def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


ServiceOf = Annotated[Service, Depends(_service)]


async def _snapshot(request: Request, service: ServiceOf) -> Snapshot:
    """Read the snapshot once for this request, and let its reply name the generation."""
    snapshot = service.serving.snapshot
    if snapshot is None:
        why = service.serving.problem or "no generation is served yet; build one with `hone index`"
        raise not_ready(f"no snapshot is loaded: {why}")
    request.state.generation = snapshot.generation.number
    return snapshot


SnapshotOf = Annotated[Snapshot, Depends(_snapshot)]


async def _ready(request: Request, service: ServiceOf, snapshot: SnapshotOf) -> Snapshot:
    """Refuse where requests are not answered, or will not be for long."""
    if is_draining(request.app):
        raise not_ready("the server is about to end; ask another one")
    if service.admission.health:
        raise not_ready(service.admission.health)
    return snapshot


ReadyOf = Annotated[Snapshot, Depends(_ready)]
