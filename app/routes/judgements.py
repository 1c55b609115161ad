"""/v1/judgements: what people say of a hit or a mined negative, stored, and listed again.

Does not know what mining or training make of it.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response

from app.judgement_schemas import JudgedReply, Judgement, JudgementsReply, JudgeReply, JudgeRequest
from app.judgements import Said
from app.keys import Key
from app.replies import BODY, Refusal, errors, reply
from app.service import ServiceOf, SnapshotOf
from app.snapshot import Snapshot
from retriever.data import Corpus

MAX_SHOWN = 1000
MAX_ID = 2**31 - 1
NOBODY = "anonymous"
"""The judge where no keys are asked for and nobody says who it is."""

router = APIRouter(tags=["judgements"])


@router.post("/v1/judgements", response_model=JudgeReply, responses=errors(*BODY, 503, 507))
def judge(body: JudgeRequest, snapshot: SnapshotOf, service: ServiceOf, request: Request) -> Response:
    """Store what people say of passages: mining respects it at once, and `hone export judgements` gives it to training.

    It is about the two texts: it holds for copies of the passage, and for the same query under whatever id. The same
    again changes nothing; another verdict of the same judge takes the place of the one before, which is kept.
    """
    key: Key | None = getattr(request.state, "bearer", None)
    said = _known(body.judgements, snapshot, [_judge(one, key) for one in body.judgements])
    stored = service.judgements.add(said, snapshot.generation.number, None if key is None else key.id)
    generation = snapshot.generation.number
    return reply({"generation": generation, "stored": stored, "unchanged": len(said) - stored})


def _judge(judgement: Judgement, key: Key | None) -> str:
    """Return who says so. Raises Refusal, 403, for somebody else's name."""
    if key is None:
        return judgement.by or NOBODY
    if judgement.by not in (None, key.name):
        raise Refusal(403, f"by: key {key.id} judges as {key.name!r}, not as {judgement.by!r}; leave it out")
    return key.name


def _known(judgements: Sequence[Judgement], snapshot: Snapshot, judges: Sequence[str]) -> list[Said]:
    """Return what is to be stored.

    Raises RequestValidationError naming each passage that the corpus lacks, and each verdict that another one of the
    same request contradicts.
    """
    said: list[Said] = []
    problems: list[dict[str, Any]] = []
    first: dict[object, tuple[int, int]] = {}
    for place, (judgement, by) in enumerate(zip(judgements, judges, strict=True)):
        one = _said(judgement, snapshot.corpus, by)
        if one is None:
            generation = snapshot.generation.number
            told = f"{judgement.passage!r} is not in the corpus of generation {generation}"
            problems.append(_problem(place, "passage", told, judgement.passage))
            continue
        earlier, grade = first.setdefault((one.pair, by), (place, one.grade))
        if grade != one.grade:
            told = f"judgements.{earlier} says {grade} of the same pair; send one of them"
            problems.append(_problem(place, "relevant", told, one.grade))
        said.append(one)
    if problems:
        raise RequestValidationError(problems)
    return said


def _said(judgement: Judgement, corpus: Corpus, judge: str) -> Said | None:
    """Return what is to be stored of one, None if the corpus lacks its passage."""
    row, query = corpus.row_of(judgement.passage), judgement.query
    if row is None:
        return None
    text_hash, grade = int(corpus.text_hash[row]), int(judgement.relevant)
    return Said(query.id, query.text, judgement.passage, text_hash, grade, judge, judgement.note)


def _problem(place: int, name: str, message: str, given: object) -> dict[str, Any]:
    return {"type": "value_error", "loc": ("body", "judgements", place, name), "msg": message, "input": given}


@router.get("/v1/judgements", response_model=JudgementsReply, responses=errors(422, 503))
def judgements(
    service: ServiceOf,
    limit: Annotated[int, Query(ge=1, le=MAX_SHOWN)] = 100,
    before: Annotated[int | None, Query(ge=1, le=MAX_ID, description="Only those whose id is below.")] = None,
) -> Response:
    """List what was judged, newest first, each verdict that was ever stored."""
    rows = service.judgements.newest(limit, before)
    more = rows[-1].id if len(rows) == limit else None
    return reply(JudgementsReply(judgements=[JudgedReply.of(row) for row in rows], next=more).model_dump())
