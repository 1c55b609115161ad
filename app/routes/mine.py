"""POST /v1/mine: hard negatives for queries from the served generation.

Does not know how candidates are found, judged or drawn: that is the miner's.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse

from app.admission import ComputeError
from app.mine_schemas import Knobs, MineReply, MineRequest
from app.mining import Asked, check_positives, fitted, mined, source_generations, with_judgements
from app.mining_job import MINE, asked_parts, digest
from app.replies import BODY, MODEL, Refusal, errors, reply, told
from app.schemas import JobReply
from app.searching import lexical_index
from app.service import Service, ServiceOf, SnapshotOf
from app.snapshot import Snapshot
from miner.mining import MiningConfig
from retriever.errors import HoneError

CHUNK_QUERIES = 4
"""Queries that are mined at a time: between two chunks whoever searches has the cores. With 32 some 40 % more were
mined in a second, and the p99 of a search beside them was 72 ms instead of 28."""
LINES = "application/x-ndjson"
LINE = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE

router = APIRouter(tags=["mining"])


@router.post(
    "/v1/mine",
    response_model=MineReply,
    responses={
        200: {"content": {LINES: {"schema": {"type": "string"}}}, "description": "The negatives of each query."},
        202: {"model": JobReply, "description": "A job mines them; follow it under `Location`."},
        **errors(*BODY, 409, *MODEL, 507),
    },
)
async def mine(body: MineRequest, snapshot: SnapshotOf, service: ServiceOf, request: Request) -> Response:
    """Mine negatives for each query: the same generation, seed and judgements give the same ones, byte for byte.

    What POST /v1/judgements has stored counts at once: a passage judged relevant to a query never comes back for it,
    one judged irrelevant may though a limit refuses it, and says so.
    Sources that are other generations count as well: the job's result names them. 409 where one is not there.
    With `stream`, a line is {"id", "negatives"}, and where queries were cut the last one {"cut_queries"}; if mining
    fails midway, the last line is an error's body.
    """
    config = fitted(body.config(), len(snapshot.corpus))
    if "bm25" in config.sources:
        lexical_index(snapshot)
    queries = [Asked(query.id, query.text, query.positives) for query in body.queries]
    await run_in_threadpool(check_positives, snapshot, queries)
    if body.job is not None:
        return await run_in_threadpool(_queued, body, queries, snapshot, request)
    queries = await run_in_threadpool(_judged, queries, service)
    chunks = _mined(body, config, queries, snapshot, service)
    if body.stream:
        return StreamingResponse(_lines(chunks), media_type=LINES)
    results: list[dict[str, Any]] = []
    cut_queries = 0
    async for chunk, cut in chunks:
        results += chunk
        cut_queries += cut
    return reply({"generation": snapshot.generation.number, "cut_queries": cut_queries, "results": results})


def _judged(queries: list[Asked], service: Service) -> list[Asked]:
    return with_judgements(queries, service.judgements, service.judgements.position())


def _queued(body: MineRequest, queries: list[Asked], snapshot: Snapshot, request: Request) -> Response:
    """Let a job mine; the same request again while it is queued or running is the same job, another one has to wait.

    Names of other generations become numbers now: where a pointer moves meanwhile, the job does not.
    """
    service: Service = request.app.state.service
    parts = asked_parts(queries)
    params = {
        "generation": snapshot.generation.number,
        "others": source_generations(request.app.state.store, snapshot.generation, body.config().sources),
        "format": body.job,
        "num_negatives": body.num_negatives,
        "seed": body.seed,
        "knobs": body.model_dump(include={*Knobs.model_fields}),
        "queries": len(queries),
        "sha256": digest(parts),
        "judgements": service.judgements.position(),
    }
    job, new = service.processes.start(MINE, params, parts)
    params["judgements"] = job.params.get("judgements", 0)  # what was judged since is no other request
    if not new and json.dumps(job.params) != json.dumps(params):  # quotas draw in the order in which they are written
        raise Refusal(409, f"job {job.id} mines for another request; wait for it or cancel it")
    return reply(JobReply.of(job).model_dump(), 202, {"Location": f"/v1/jobs/{job.id}"})


async def _mined(
    body: MineRequest, config: MiningConfig, queries: list[Asked], snapshot: Snapshot, service: Service
) -> AsyncIterator[tuple[list[dict[str, Any]], int]]:
    """Yield the results of a few queries at a time, and how many of these were cut."""
    for start in range(0, len(queries), CHUNK_QUERIES):
        chunk = queries[start : start + CHUNK_QUERIES]
        try:
            done = await service.encode(snapshot, "query", [query.text for query in chunk], patient=True)
        except ComputeError as error:
            raise error.at(start + error.place) from error.cause
        async with service.mining:
            found = await run_in_threadpool(mined, snapshot, chunk, done.values, config, body.num_negatives, body.seed)
        service.telemetry.count_mined(found.negatives, found.filtered)
        yield found.results, done.cut


async def _lines(chunks: AsyncIterator[tuple[list[dict[str, Any]], int]]) -> AsyncIterator[bytes]:
    cut_queries = 0
    try:
        async for chunk, cut in chunks:
            cut_queries += cut
            yield b"".join(orjson.dumps(one, option=LINE) for one in chunk)
        if cut_queries:  # known too late for a header
            yield orjson.dumps({"cut_queries": cut_queries}, option=LINE)
    except HoneError as error:  # the status is sent already
        yield orjson.dumps(told(error), option=LINE)
