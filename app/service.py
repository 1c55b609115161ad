"""What one server is made of, and how a route asks for it.

Does not know the routes.
"""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from app.job_processes import JobProcesses
from app.jobs import Jobs
from app.recall_meter import RecallMeter
from app.replies import not_ready
from app.snapshot import Serving, Snapshot
from app.telemetry import Telemetry


@dataclass(frozen=True)
class Service:
    """The parts that live as long as the server."""

    serving: Serving
    jobs: Jobs
    processes: JobProcesses
    telemetry: Telemetry
    recall: RecallMeter


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
