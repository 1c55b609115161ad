"""POST /v1/search: the best passages for queries.

Does not know how passages are found.
"""

from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from app.replies import BODY, MODEL, Refusal, errors, reply
from app.schemas import Range, SearchReply, SearchRequest
from app.searching import Manner, Query, Ranked, allowed_rows, search
from app.service import Service, ServiceOf, SnapshotOf
from app.snapshot import Snapshot
from retriever.protocols import FloatArray, IntArray

router = APIRouter(tags=["search"])


@router.post("/v1/search", response_model=SearchReply, responses=errors(*BODY, 409, *MODEL))
async def search_passages(body: SearchRequest, snapshot: SnapshotOf, service: ServiceOf) -> Response:
    """Find the best passages for each query in the served generation."""
    vectors, cut = (None, 0) if body.mode == "lexical" else await _query_vectors(body, snapshot, service)
    query = Query(body.queries, vectors)
    rows, scores = await run_in_threadpool(_found, body, snapshot, query)
    if vectors is not None and not body.exact:
        service.recall.offer(snapshot, vectors)
    cut_pairs = 0
    if body.rerank:
        rows, scores, cut_pairs = await _reranked(body, snapshot, service, rows)
    results = await run_in_threadpool(_hits, snapshot, rows, scores, body.with_text)
    stamp = {"generation": snapshot.generation.number, "space": snapshot.space}
    return reply({**stamp, "cut_queries": cut, "cut_pairs": cut_pairs, "results": results})


async def _query_vectors(body: SearchRequest, snapshot: Snapshot, service: Service) -> tuple[FloatArray, int]:
    """Return the vectors of the queries, and how many of these were cut."""
    if body.queries is not None:
        encoded = await service.encode(snapshot, "query", body.queries)
        return encoded.values, encoded.cut
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
    return vectors, 0


def _found(body: SearchRequest, snapshot: Snapshot, query: Query) -> Ranked:
    conditions = {name: one.bounds() if isinstance(one, Range) else one for name, one in body.filter.items()}
    allowed = allowed_rows(snapshot, body.exclude_ids, conditions)
    depth = min(max(body.top_k, body.rerank_depth) if body.rerank else body.top_k, len(snapshot.corpus))
    manner = Manner(body.mode, body.exact, body.fusion, body.dense_weight)
    return search(snapshot, query, manner, depth, allowed)


async def _reranked(
    body: SearchRequest, snapshot: Snapshot, service: Service, rows: Any
) -> tuple[IntArray, FloatArray, int]:
    """Return the best ``top_k`` of ``rows`` int32 [q, depth] by the ranker, their scores, and how many pairs were cut.

    Equal scores stay in their order.
    """
    assert body.queries is not None  # the schema asks for them
    depth = min(body.top_k, rows.shape[1])
    best, scores = np.full((len(rows), depth), -1, np.int32), np.full((len(rows), depth), -np.inf, np.float32)
    cut = 0
    for place, (query, found) in enumerate(zip(body.queries, rows, strict=True)):
        found = found[found >= 0]
        texts = await run_in_threadpool(snapshot.corpus.texts, found)
        done = await service.score(snapshot, query, texts)
        cut += done.cut
        order = np.argsort(-done.values, kind="stable")[:depth]
        best[place, : len(order)], scores[place, : len(order)] = found[order], done.values[order]
    return best, scores, cut


def _hits(snapshot: Snapshot, rows: Any, scores: FloatArray, with_text: bool) -> list[list[dict[str, Any]]]:
    results: list[list[dict[str, Any]]] = []
    for found, of_found in zip(rows.tolist(), scores, strict=True):
        hits: list[dict[str, Any]] = []
        for row, score in zip(found, of_found, strict=True):
            if row < 0:
                break
            hits.append({"id": snapshot.corpus.id(row), "score": score, "rank": len(hits) + 1})
            if with_text:
                hits[-1]["text"] = snapshot.corpus.text(row)
        results.append(hits)
    return results
