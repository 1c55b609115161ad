"""/embed, /rerank, /info, /health and POST / as clients of text-embeddings-inference speak them.

Does not know how texts are encoded or pairs scored.
"""

import time
from collections.abc import Awaitable
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from app.admission import ComputeError
from app.models import Computed
from app.replies import BODY, MODEL, NO_TEXT, Refusal, cut_header, errors, reply
from app.routes.encode import check_dimensions, first_of
from app.schemas import MAX_INPUTS, Body, Dimensions, Text, TextList, Texts
from app.service import ReadyOf, Service, ServiceOf, SnapshotOf
from app.snapshot import Snapshot
from retriever.counting import counted
from retriever.protocols import FloatArray
from retriever.store import code_version

router = APIRouter(tags=["faces"])

ERRORS = errors(*BODY, 424, *MODEL)
Truncation = Field(
    default=None, description="False: refuse what is longer than the model reads; else it is read up to there."
)


def _some_text(value: Any) -> Any:
    if value == "" or (isinstance(value, list) and (not value or "" in value)):
        raise PydanticCustomError(NO_TEXT, "give at least one text, and none that is empty")
    return value


class EmbedRequest(Body):
    """Texts to encode."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": ["read a file line by line"]}]})

    inputs: Annotated[Texts, BeforeValidator(_some_text, json_schema_input_type=Text | TextList)] = Field(
        description=f"One text or at most {MAX_INPUTS}."
    )
    truncate: bool | None = Truncation
    truncation_direction: Literal["right", "Right"] = Field(default="right", description="The end is cut.")
    normalize: bool = Field(default=True, description="Give vectors the length 1.")
    prompt_name: str | None = Field(
        default=None,
        max_length=256,
        description="The side: query, or passage (document is the same); may be left out where both sides are alike.",
    )
    dimensions: Dimensions = None


class RankRequest(Body):
    """A query and the texts to put in order for it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "read a file", "texts": ["open() gives a file", "a list"]}]}
    )

    query: Text
    texts: Annotated[TextList, BeforeValidator(_some_text, json_schema_input_type=TextList)] = Field(
        description=f"At most {MAX_INPUTS}."
    )
    truncate: bool | None = Truncation
    truncation_direction: Literal["right", "Right"] = Field(default="right", description="The end is cut.")
    raw_scores: bool = Field(default=False, description="Log-odds instead of probabilities.")
    return_text: bool = Field(default=False, description="Give each place its text.")


class Rank(BaseModel):
    """One text's place among those of the request and its score."""

    index: int
    score: float
    text: str | None = None


class InfoReply(BaseModel):
    """What is served, and the limits."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, dict[str, str]]
    max_concurrent_requests: int = Field(
        description="Requests of one text that are admitted at once however long their texts are: the tokens that may "
        "wait, by those that the model reads of a text. Of shorter ones more are."
    )
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


@router.post("/", response_model=list[list[float]], responses=ERRORS)
@router.post("/embed", response_model=list[list[float]], responses=ERRORS)
async def embed(body: EmbedRequest, snapshot: SnapshotOf, service: ServiceOf) -> Response:
    """Encode texts: one vector for each; the header x-hone-cut-inputs tells how many were cut."""
    began = time.perf_counter()
    side = snapshot.models.side_of(body.prompt_name)
    if side is None:
        raise Refusal(422, "prompt_name: the two sides of this model differ; say query or passage")
    check_dimensions(body.dimensions, snapshot)
    done = await _computed(service.encode(snapshot, side, body.inputs), len(body.inputs), body.truncate)
    vectors = _normalised(first_of(done.values, body.dimensions), body.normalize)
    return reply(vectors, headers=_times(done, began, sum(map(len, body.inputs))))


@router.post("/rerank", response_model=list[Rank], responses={**ERRORS, **errors(409)})
async def rank(body: RankRequest, snapshot: SnapshotOf, service: ServiceOf) -> Response:
    """Put texts in order of relevance to a query, best first; 409 where no ranker is loaded."""
    began = time.perf_counter()
    done = await _computed(service.score(snapshot, body.query, body.texts), len(body.texts), body.truncate)
    read = snapshot.models.log_odds if body.raw_scores else snapshot.models.probabilities
    scores = read(done.values)
    places: list[dict[str, Any]] = [
        {"index": place, "score": scores[place]} for place in (-done.values).argsort(kind="stable").tolist()
    ]
    if body.return_text:
        for one in places:
            one["text"] = body.texts[one["index"]]
    return reply(places, headers=_times(done, began, len(body.query) + sum(map(len, body.texts))))


@router.get("/info", response_model=InfoReply, responses=errors(503))
async def info(snapshot: SnapshotOf, service: ServiceOf) -> Response:
    """Tell what is served, and the limits."""
    return reply(_info(snapshot, service))


@router.head("/health", include_in_schema=False)
@router.get("/health", response_class=Response, responses=errors(503))
async def health(snapshot: ReadyOf) -> Response:
    """Answer nothing, with 200, if requests are answered, and will be for a while."""
    return Response()


async def _computed(work: Awaitable[Computed], inputs: int, truncate: bool | None) -> Computed:
    try:
        done = await work
    except ComputeError as error:
        raise Refusal(424, str(error)) from error
    if truncate is False and done.cut:
        longer = counted(done.cut, f"of {inputs} inputs is longer", f"of {inputs} inputs are longer")
        raise Refusal(
            413, f"{longer} than {done.longest} tokens, the most that the model reads; shorten them, or truncate"
        )
    return done


def _normalised(vectors: FloatArray, wanted: bool) -> FloatArray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if np.abs(lengths - 1).max() < 1e-4:
        if wanted:
            return vectors
        raise Refusal(422, "normalize: this model's own vectors have the length 1; leave it out")
    return vectors / np.maximum(lengths, 1e-12) if wanted else vectors


def _times(done: Computed, began: float, characters: int) -> dict[str, str]:
    seconds = {
        "x-total-time": time.perf_counter() - began,
        "x-compute-time": time.perf_counter() - began,
        "x-queue-time": done.queue_seconds,
        "x-inference-time": done.compute_seconds,
    }
    counts = {"x-compute-tokens": done.tokens, "x-compute-characters": characters}
    milliseconds = {name: str(round(1000 * value)) for name, value in seconds.items()}
    return milliseconds | {name: str(count) for name, count in counts.items()} | cut_header(done.cut)


def _info(snapshot: Snapshot, service: Service) -> dict[str, Any]:
    encoder, limits = snapshot.encoder, service.admission.config
    return {
        "model_id": "hone",
        "model_sha": snapshot.generation.facts.get("weights_sha256"),
        "model_dtype": encoder.computed_by.rpartition(" ")[2],
        "model_type": {"embedding": {"pooling": encoder.pooling}},
        "max_concurrent_requests": limits.queue_tokens // snapshot.models.longest,
        "max_input_length": snapshot.models.longest,
        "max_batch_tokens": limits.batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": MAX_INPUTS,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": code_version(),
        "sha": None,
        "docker_label": None,
    }
