"""POST /v1/mine: hard negatives for queries from the served generation.

Does not know how candidates are found, judged or drawn: that is the miner's.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from numpy.typing import NDArray

from app.replies import BODY, MODEL, Refusal, errors, reply
from app.schemas import MineReply, MineRequest
from app.service import ServiceOf, SnapshotOf
from app.snapshot import Snapshot
from miner.counter_hash import gumbel
from miner.filters import FilterConfig, judge
from miner.mining import positive_scores
from miner.samplers import SAMPLERS, SamplerConfig, draw
from miner.sources import ann_candidates
from retriever.data import duplicate_hash, hash64
from retriever.negatives import Verdict
from retriever.protocols import BoolArray, FloatArray, IntArray

SHOWN_UNKNOWN = 5

router = APIRouter(tags=["mining"])


@dataclass(frozen=True)
class Candidates:
    """What was found for each query: rows int32 [q, D], best first with −1 pads, scores and verdicts [q, D]."""

    rows: IntArray
    scores: FloatArray
    verdicts: NDArray[np.uint8]


@router.post("/v1/mine", response_model=MineReply, responses=errors(*BODY, *MODEL))
async def mine(body: MineRequest, snapshot: SnapshotOf, service: ServiceOf) -> Response:
    """Mine negatives for each query: the same (generation, seed) always gives the same ones."""
    vectors = (await service.encode(snapshot, "query", [query.text for query in body.queries], patient=True)).values
    candidates = await run_in_threadpool(_candidates, body, snapshot, vectors)
    columns, mask = _drawn(body, snapshot.generation.number, candidates)
    service.telemetry.mined.inc(int(mask.sum()))
    results = [
        {"id": query.id, "negatives": [_negative(snapshot, candidates, line, column) for column in drawn[kept]]}
        for line, (query, drawn, kept) in enumerate(zip(body.queries, columns, mask, strict=True))
    ]
    return reply({"generation": snapshot.generation.number, "results": results})


def _candidates(body: MineRequest, snapshot: Snapshot, vectors: FloatArray) -> Candidates:
    limits = FilterConfig(body.range_min, body.range_max, body.absolute_margin, body.relative_margin, body.max_score)
    positives = _positive_rows(body, snapshot)
    texts = [query.text for query in body.queries]
    rows, scores = ann_candidates(snapshot.searcher, vectors, min(body.depth, snapshot.searcher.rows))
    of_positives = positive_scores(vectors, positives, snapshot.vectors.gather)
    query_hash = np.array([duplicate_hash(text) for text in texts], np.uint64)
    verdicts = judge(rows, scores, positives, of_positives, query_hash, snapshot.corpus.text_hash, limits)
    return Candidates(rows, scores, verdicts)


def _positive_rows(body: MineRequest, snapshot: Snapshot) -> IntArray:
    """Return the rows of the positives int32 [q, P], −1 pads. Raises Refusal naming the ids that are unknown."""
    padded = np.full((len(body.queries), max(1, *(len(query.positives) for query in body.queries))), -1, np.int32)
    unknown: list[str] = []
    for line, query in zip(padded, body.queries, strict=True):
        for column, passage_id in enumerate(query.positives):
            row = snapshot.corpus.row_of(passage_id)
            if row is None:
                unknown.append(passage_id)
            else:
                line[column] = row
    if unknown:
        shown = ", ".join(map(repr, unknown[:SHOWN_UNKNOWN])) + (", …" if len(unknown) > SHOWN_UNKNOWN else "")
        corpus = f"the corpus of generation {snapshot.generation.number}"
        raise Refusal(422, f"queries.positives: {len(unknown)} ids are not in {corpus}: {shown}")
    return padded


def _drawn(body: MineRequest, generation: int, candidates: Candidates) -> tuple[NDArray[np.intp], BoolArray]:
    """Draw columns of the eligible candidates; a query's draw depends on its own id, not on its neighbours."""
    sampler = SAMPLERS[SamplerConfig(body.sampler.name).name]
    noise: NDArray[np.float64] | float = 0.0
    if sampler.random:
        query_keys = np.array([hash64(query.id) for query in body.queries], np.uint64)
        noise = gumbel("mine", body.seed, generation, query_keys[:, None], candidates.rows)
    weights = sampler.log_weights(candidates.scores, candidates.verdicts == Verdict.ELIGIBLE)
    return draw(weights, body.num_negatives, noise)


def _negative(snapshot: Snapshot, candidates: Candidates, line: int, column: int) -> dict[str, Any]:
    return {
        "id": snapshot.corpus.id(candidates.rows[line, column]),
        "score": candidates.scores[line, column],
        "rank": int(column) + 1,
        "source": "ann",
        "verdict": Verdict(candidates.verdicts[line, column]).name.lower(),
    }
