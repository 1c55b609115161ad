"""POST /v1/index/rebuild and /v1/jobs: ask for a new generation; watch, hear, cancel jobs, read what they made.

Does not know how a generation is built: the job's own process does that.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse
from sqlalchemy.exc import SQLAlchemyError

from app import keys
from app.authorization import demand
from app.draining import is_draining
from app.job_kinds import REBUILD
from app.jobs import ACTIVE, CANCELLED, DONE, KEPT_RESULTS, Job, Jobs
from app.mining_job import MINE
from app.replies import Refusal, errors, reply
from app.schemas import CancelReply, JobReply, JobsReply
from app.service import ServiceOf

MAX_SHOWN = 1000
EVENT_SECONDS = 0.25
KEEP_ALIVE_SECONDS = 15.0
LINES = "application/x-ndjson"
SCOPE_OF_KIND = {REBUILD: keys.WRITE, MINE: keys.MINE}
"""Who may start a job of a kind may cancel one; what is not named is admin's."""

router = APIRouter(tags=["jobs"])


@router.post(
    "/v1/index/rebuild",
    response_model=JobReply,
    status_code=202,
    responses={
        200: {"model": JobReply, "description": "A rebuild is queued or running: this one."},
        **errors(503, 507),
    },
)
def rebuild(service: ServiceOf) -> Response:
    """Build what is served again over the store's newest passages, in its own process; follow it under `Location`."""
    job, new = service.processes.start(REBUILD)
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


@router.get(
    "/v1/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"text/event-stream": {}},  # no schema: OpenAPI leaves open whether it is an event's
            "description": "Server-sent events, progress and end: their data is what GET /v1/jobs/{job_id} gives.",
        },
        **errors(404, 422, 503),
    },
)
async def events(job_id: str, service: ServiceOf, request: Request) -> StreamingResponse:
    """Send the job as server-sent events: `progress` whenever it has moved, `end` once it has ended.

    Each event holds the whole job, so a client that lost the connection asks again and misses nothing.
    """
    first = await run_in_threadpool(service.jobs.get, job_id)
    stream = _events(first, service.jobs, lambda: is_draining(request.app))
    return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _events(job: Job, jobs: Jobs, stopping: Callable[[], bool]) -> AsyncIterator[bytes]:
    sent, quiet = "", 0.0
    while True:
        state = JobReply.of(job).model_dump_json()
        ended = job.state not in ACTIVE
        if state != sent or ended:
            yield f"event: {'end' if ended else 'progress'}\ndata: {state}\n\n".encode()
            sent, quiet = state, 0.0
        elif quiet >= KEEP_ALIVE_SECONDS:
            yield b": still there\n\n"
            quiet = 0.0
        if ended or stopping():
            return
        await asyncio.sleep(EVENT_SECONDS)
        quiet += EVENT_SECONDS
        try:
            job = await run_in_threadpool(jobs.get, job.id)
        except SQLAlchemyError:
            return  # the status has gone out already: the client sees the stream end and asks again


@router.get(
    "/v1/jobs/{job_id}/result",
    response_class=StreamingResponse,
    responses={
        200: {"content": {LINES: {"schema": {"type": "string"}}}, "description": "The file that the job made."},
        **errors(404, 409, 422, 503),
    },
)
def result(job_id: str, service: ServiceOf, request: Request) -> StreamingResponse:
    """Download what a mining job made, as JSON lines; 409 before it is done, 404 where there is no file (any more)."""
    job = service.jobs.get(job_id)
    if job.kind != MINE:
        raise Refusal(404, f"job {job_id} is a {job.kind} and makes no file; one of POST /v1/mine does")
    if job.state != DONE:
        raise Refusal(409, f"job {job_id} is {job.state}; its file can be read once it is done")
    parts = service.jobs.parts(job_id, "made")
    if not parts:
        raise Refusal(404, f"job {job_id}: its file was removed; only those of the newest {KEPT_RESULTS} are kept")
    headers = {
        "content-length": str(sum(facts["bytes"] for facts in parts.values())),
        "content-disposition": f'attachment; filename="{job_id}.jsonl"',
    }
    request.state.generation = job.params["generation"]
    stream = (service.jobs.part(job_id, "made", number) for number in parts)
    return StreamingResponse(stream, media_type=LINES, headers=headers)


@router.post("/v1/jobs/{job_id}/cancel", response_model=CancelReply, responses=errors(404, 409, 422, 503, 507))
def cancel(job_id: str, service: ServiceOf, request: Request) -> Response:
    """Ask a job to stop. May be repeated; 409 once it is done, NO_OP once it has failed or was cancelled.

    It needs the scope that starts such a job: `mine` for mining, `write` for a rebuild, `admin` for the others.
    """
    demand(request, SCOPE_OF_KIND.get(service.jobs.get(job_id).kind, keys.ADMIN))
    stopping = service.jobs.request_cancel(job_id)
    job = service.jobs.get(job_id)
    outcome: Literal["CANCELLED", "CANCELLING", "NO_OP"] = "NO_OP"
    if stopping:
        outcome = "CANCELLED" if job.state == CANCELLED else "CANCELLING"
    return reply(CancelReply(outcome=outcome, job=JobReply.of(job)).model_dump())
