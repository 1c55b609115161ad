"""POST /v1/index/rebuild and /v1/jobs: ask for a new generation, watch it being built, cancel it.

Does not know how a generation is built: the job's own process does that.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response

from app.jobs import CANCELLED
from app.replies import errors, reply
from app.schemas import CancelReply, JobReply, JobsReply
from app.service import ServiceOf

MAX_SHOWN = 1000

router = APIRouter(tags=["jobs"])


@router.post(
    "/v1/index/rebuild",
    response_model=JobReply,
    status_code=202,
    responses={200: {"model": JobReply, "description": "A rebuild is queued or running: this one."}, **errors(503)},
)
def rebuild(service: ServiceOf) -> Response:
    """Build a new generation from the newest checkpoint, in a process of its own; follow it under `Location`."""
    job, new = service.processes.start("rebuild")
    headers = {"Location": f"/v1/jobs/{job.id}"}
    return reply(JobReply.of(job).model_dump(), 202 if new else 200, headers)


@router.get("/v1/jobs", response_model=JobsReply, responses=errors(422, 503))
def newest(service: ServiceOf, limit: Annotated[int, Query(ge=1, le=MAX_SHOWN)] = 100) -> Response:
    """List the newest jobs, and say how many there are."""
    shown = [JobReply.of(job) for job in service.jobs.newest(limit)]
    return reply(JobsReply(jobs=shown, total=sum(service.jobs.counts().values())).model_dump())


@router.get("/v1/jobs/{job_id}", response_model=JobReply, responses=errors(404, 422, 503))
def job(job_id: str, service: ServiceOf) -> Response:
    """Show a job as it stands now."""
    return reply(JobReply.of(service.jobs.get(job_id)).model_dump())


@router.post("/v1/jobs/{job_id}/cancel", response_model=CancelReply, responses=errors(404, 409, 422, 503))
def cancel(job_id: str, service: ServiceOf) -> Response:
    """Ask a job to stop. May be repeated; 409 once it is done, NO_OP once it has failed or was cancelled."""
    stopping = service.jobs.request_cancel(job_id)
    job = service.jobs.get(job_id)
    outcome: Literal["CANCELLED", "CANCELLING", "NO_OP"] = "NO_OP"
    if stopping:
        outcome = "CANCELLED" if job.state == CANCELLED else "CANCELLING"
    return reply(CancelReply(outcome=outcome, job=JobReply.of(job)).model_dump())
