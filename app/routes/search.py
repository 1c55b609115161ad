"""POST /v1/search: the passages nearest to queries.

Does not know how an index finds them.
"""

from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from app.replies import BODY, MODEL, Refusal, errors, reply
from app.schemas import SearchReply, SearchRequest
from app.service import Service, ServiceOf, SnapshotOf
from app.snapshot import Snapshot
from indexer.exact import exact_search
from retriever.protocols import FloatArray, IntArray

router = APIRouter(tags=["search"])


@router.post("/v1/search", response_model=SearchReply, responses=errors(*BODY, 409, *MODEL))
async def search(body: SearchRequest, snapshot: SnapshotOf, service: ServiceOf) -> Response:
    """Find the passages nearest to each query in the served generation."""
    vectors = await _query_vectors(body, snapshot, service)
    results = await run_in_threadpool(_results, body, snapshot, vectors)
    return reply({"generation": snapshot.generation.number, "space": snapshot.space, "results": results})


async def _query_vectors(body: SearchRequest, snapshot: Snapshot, service: Service) -> FloatArray:
    if body.queries is not None:
        return (await service.encode(snapshot, "query", body.queries)).values
    if body.space != snapshot.space:
        raise Refusal(
            409,
            f"the vectors are of space {body.space!r}, generation {snapshot.generation.number} is of space "
            f"{snapshot.space!r}; encode the queries again with /v1/encode",
        )
    assert body.vectors is not None  # the schema asks for one of the two
    dimensions = snapshot.encoder.dimensions
    for position, vector in enumerate(body.vectors):
        if len(vector) != dimensions:
            raise Refusal(422, f"vectors.{position}: {len(vector)} numbers where this space has {dimensions}")
    with np.errstate(over="ignore"):
        vectors = np.array(body.vectors, np.float32)
    if not np.isfinite(vectors).all():
        raise Refusal(422, "vectors: a number is too large for float32")
    return vectors


def _results(body: SearchRequest, snapshot: Snapshot, vectors: FloatArray) -> list[list[dict[str, Any]]]:
    rows, scores = _search(body, snapshot, vectors)
    return [_hits(snapshot, found, of_found, body.with_text) for found, of_found in zip(rows, scores, strict=True)]


def _search(body: SearchRequest, snapshot: Snapshot, vectors: FloatArray) -> tuple[IntArray, FloatArray]:
    depth = min(body.top_k, len(snapshot.corpus))
    found = (snapshot.corpus.row_of(passage_id) for passage_id in body.exclude_ids)
    excluded = {row for row in found if row is not None}
    if body.exact:
        allowed = np.ones(len(snapshot.corpus), np.bool_)
        allowed[list(excluded)] = False
        return exact_search(vectors, snapshot.vectors, depth, allowed)
    if excluded:
        return snapshot.searcher.search_excluding(vectors, depth, [excluded] * len(vectors))
    return snapshot.searcher.search(vectors, depth)


def _hits(snapshot: Snapshot, rows: IntArray, scores: FloatArray, with_text: bool) -> list[dict[str, Any]]:
    hits: list[dict[str, Any]] = []
    for row, score in zip(rows.tolist(), scores, strict=True):
        if row < 0:
            break
        hits.append({"id": snapshot.corpus.id(row), "score": score, "rank": len(hits) + 1})
        if with_text:
            hits[-1]["text"] = snapshot.corpus.text(row)
    return hits
