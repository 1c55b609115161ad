"""/v1/generations: what there is, what the gate said of it, which one is served, and what a query gains or loses.

Does not know the gate's rule, nor how a generation is loaded.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from app.generation_diff import generation_diff
from app.generation_list import known_of, newest_generations
from app.job_kinds import PROMOTE, ROLLBACK
from app.replies import Refusal, errors, reply
from app.schemas import JobReply
from app.service import Service, ServiceOf
from indexer.promotion import ledger, promote, rollback
from retriever.artifacts import SERVED, Artifact
from retriever.errors import CorruptError, InputError
from retriever.store import Store

MAX_SHOWN = 1000

Number = Annotated[int, Path(ge=0, le=999_999_999)]

router = APIRouter(tags=["generations"])


class GenerationReply(BaseModel):
    """A published generation: where it comes from, what was measured, what the gate said."""

    number: int
    created: str
    parents: dict[str, int] = Field(description="Numbers of the checkpoint and the corpus that it was made from.")
    names: list[str] = Field(description="Pointers that name it: SERVED, BEST, CURRENT, those of `hone pin` …")
    served: bool
    best: bool
    partial: bool = Field(description="Most vectors are mapped from an earlier generation's: to be mined from alone.")
    facts: dict[str, Any] = Field(description="Step, rows, index, recall against exact search, dev metrics, seconds.")
    gate: dict[str, Any] | None = Field(description="The verdict at its publication: served, reason, checks, against.")


class GenerationsReply(BaseModel):
    """Generations, newest first, and the last moves of SERVED."""

    generations: list[GenerationReply]
    served: int | None
    promotions: list[dict[str, Any]] = Field(description="Moves of SERVED, newest first: from, to, by, reason, checks.")


class PromotionReply(BaseModel):
    """SERVED has moved."""

    time: float
    from_: int | None = Field(alias="from")
    to: int
    by: Literal["gate", "promote", "force", "rollback", "pin"]
    reason: str | None = None
    checks: list[dict[str, Any]] | None = None


class QueryChange(BaseModel):
    """A dev query whose figure changed."""

    id: str
    text: str
    difference: float
    flipped: bool = Field(description="It had a relevant passage among its first ten hits in `old`, and has none now.")


class DiffReply(BaseModel):
    """nDCG@10 of each dev query in generation ``new`` minus that in ``old``, worst first; unchanged ones left out."""

    new: int
    old: int
    split: str
    measure: str
    queries: int = Field(description="Dev queries that both were measured on.")
    mean: float
    gained: int
    lost: int
    flips: int
    flip_rate: float
    results: list[QueryChange]


MOVED_LATER: dict[int | str, dict[str, Any]] = {
    202: {"model": JobReply, "description": "The server may not write to the store: this job will move SERVED."}
}


@router.get("/v1/generations", response_model=GenerationsReply, responses=errors(422, 503))
def generations(
    service: ServiceOf, request: Request, limit: Annotated[int, Query(ge=1, le=MAX_SHOWN)] = 100
) -> Response:
    """List the newest generations and the last moves of SERVED."""
    store = _store(request)

    def unreadable(number: int, reason: str) -> None:
        service.telemetry.log.warning("generation_unreadable", number=number, reason=reason)

    shown = newest_generations(store, limit, unreadable)
    moves = ledger(store)[: -limit - 1 : -1]
    return reply({"generations": shown, "served": store.generations.pointed(SERVED), "promotions": moves})


@router.get("/v1/generations/{number}", response_model=GenerationReply, responses=errors(404, 422, 503))
def generation(number: Number, request: Request) -> Response:
    """Show one generation: lineage, measured recall, dev metrics, the gate's verdict."""
    store = _store(request)
    return reply(known_of(_at(store, number), store.generations.pointers()))


@router.post(
    "/v1/generations/{number}/promote",
    response_model=PromotionReply,
    responses={**MOVED_LATER, **errors(404, 409, 422, 503, 507)},
)
def promote_generation(
    number: Number,
    service: ServiceOf,
    request: Request,
    force: Annotated[bool, Query(description="Serve it though the gate refuses it.")] = False,
) -> Response:
    """Serve this generation if the gate lets it pass; 409 with the gate's reason if not."""
    store = _store(request)
    _at(store, number)
    return _move(
        service, store, PROMOTE, {"number": number, "force": force}, lambda: promote(store, number, force=force)
    )


@router.post(
    "/v1/generations/rollback", response_model=PromotionReply, responses={**MOVED_LATER, **errors(409, 503, 507)}
)
def roll_back(service: ServiceOf, request: Request) -> Response:
    """Serve the generation again that was served before; repeated, the one before that."""
    store = _store(request)
    return _move(service, store, ROLLBACK, {}, lambda: rollback(store))


@router.get("/v1/generations/{new}/diff/{old}", response_model=DiffReply, responses=errors(404, 409, 422, 503))
def diff(new: Number, old: Number, request: Request) -> Response:
    """Show which dev queries generation `new` answers better or worse than `old`."""
    store = _store(request)
    _at(store, new), _at(store, old)
    try:
        return reply(generation_diff(store, new, old))
    except InputError as error:
        raise Refusal(409, str(error)) from error


def _move(
    service: Service, store: Store, kind: str, params: dict[str, Any], move: Callable[[], dict[str, Any]]
) -> Response:
    """Move SERVED here where the store can be written, else leave it to a job."""
    if store.is_writable():
        try:
            return reply(move())
        except (InputError, CorruptError) as error:
            raise Refusal(409, str(error)) from error
    job, new = service.processes.start(kind, params)
    if not new and job.params != params:
        raise Refusal(409, f"job {job.id} is to {kind} {job.params.get('number', '')} first; wait for it or cancel it")
    return reply(JobReply.of(job).model_dump(), 202, {"Location": f"/v1/jobs/{job.id}"})


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def _at(store: Store, number: int) -> Artifact:
    if not store.generations.path(number).exists():
        raise Refusal(404, f"there is no generation {number}; GET /v1/generations lists them")
    return store.generations.at(number)
