"""POST /v1/mine: hard negatives for queries from the served generation.

Does not know how candidates are found, judged or drawn: that is the miner's.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import orjson
from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse

from app.mine_schemas import MineReply, MineRequest
from app.mining import Asked, check_positives, mined
from app.replies import BODY, MODEL, errors, reply, told
from app.service import Service, ServiceOf, SnapshotOf
from app.snapshot import Snapshot
from retriever.errors import HoneError

CHUNK_QUERIES = 32
"""Queries that are mined at a time: between two chunks whoever searches has the cores."""
LINES = "application/x-ndjson"
LINE = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE

router = APIRouter(tags=["mining"])


@router.post(
    "/v1/mine",
    response_model=MineReply,
    responses={
        200: {"content": {LINES: {"schema": {"type": "string"}}}, "description": "The negatives of each query."},
        **errors(*BODY, *MODEL),
    },
)
async def mine(body: MineRequest, snapshot: SnapshotOf, service: ServiceOf) -> Response:
    """Mine negatives for each query: the same (generation, seed) always gives the same ones, byte for byte.

    With `stream`, a line is {"id", "negatives"}; if mining fails midway, the last line is an error's body.
    """
    queries = [Asked(query.id, query.text, query.positives) for query in body.queries]
    await run_in_threadpool(check_positives, snapshot, queries)
    chunks = _mined(body, queries, snapshot, service)
    if body.stream:
        return StreamingResponse(_lines(chunks), media_type=LINES)
    results = [one async for chunk in chunks for one in chunk]
    return reply({"generation": snapshot.generation.number, "results": results})


async def _mined(
    body: MineRequest, queries: list[Asked], snapshot: Snapshot, service: Service
) -> AsyncIterator[list[dict[str, Any]]]:
    config = body.config()
    config = replace(config, depth=min(config.depth, len(snapshot.corpus)))
    for start in range(0, len(queries), CHUNK_QUERIES):
        chunk = queries[start : start + CHUNK_QUERIES]
        vectors = (await service.encode(snapshot, "query", [query.text for query in chunk], patient=True)).values
        async with service.mining:
            found = await run_in_threadpool(mined, snapshot, chunk, vectors, config, body.num_negatives, body.seed)
        service.telemetry.mined.inc(sum(len(one["negatives"]) for one in found))
        yield found


async def _lines(chunks: AsyncIterator[list[dict[str, Any]]]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield b"".join(
                orjson.dumps(one, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE) for one in chunk
            )
    except HoneError as error:  # the status is sent already
        yield orjson.dumps(told(error), option=LINE)
