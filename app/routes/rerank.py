"""POST /v1/rerank and /v2/rerank as Cohere's and Jina's clients speak them.

Does not know how pairs are scored.
"""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from app.replies import BODY, MODEL, cut_header, errors, reply
from app.schemas import MAX_INPUTS, Body, Text
from app.service import ServiceOf, SnapshotOf

router = APIRouter(tags=["faces"])


class TextObject(Body):
    """A text by its name, as Cohere's first version has it."""

    text: Text


Documents = Annotated[list[Text | TextObject], Field(min_length=1, max_length=MAX_INPUTS)]


class RerankRequest(Body):
    """A query and the texts to put in order for it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "read a file", "documents": ["open() gives a file", "a list"]}]}
    )

    query: Text
    documents: Documents = Field(description=f"At most {MAX_INPUTS} texts.")
    model: str | None = Field(default=None, max_length=256, description="Not used: there is one ranker.")
    top_n: int | None = Field(
        default=None,
        ge=1,
        validation_alias=AliasChoices("top_n", "top_k"),
        description="How many of the best to return; all without it. top_k is another name.",
    )
    return_documents: bool = Field(default=False, description="Give each result its text.")


class Ranked(BaseModel):
    """One text's place among those of the request, and how likely it is relevant."""

    index: int
    relevance_score: float = Field(description="From 0 to 1.")
    document: TextObject | None = None


class RankUsage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class RerankReply(BaseModel):
    """The texts, best first.

    The headers x-hone-generation and x-hone-cut-inputs tell the generation, and how many pairs with a text were cut.
    """

    id: str
    model: str
    results: list[Ranked]
    usage: RankUsage
    cut_pairs: int = Field(description="Pairs longer than the ranker reads; the rest of them was not read.")


ERRORS = errors(*BODY, 409, *MODEL)


@router.post("/v1/rerank", response_model=RerankReply, responses=ERRORS)
@router.post("/v2/rerank", response_model=RerankReply, responses=ERRORS)
async def rerank(body: RerankRequest, snapshot: SnapshotOf, service: ServiceOf) -> Response:
    """Put texts in order of relevance to a query; 409 where no ranker is loaded."""
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    done = await service.score(snapshot, body.query, texts)
    probabilities = snapshot.models.probabilities(done.values)
    best = (-done.values).argsort(kind="stable")[: body.top_n].tolist()
    results: list[dict[str, Any]] = [{"index": one, "relevance_score": probabilities[one]} for one in best]
    if body.return_documents:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    usage = {"prompt_tokens": done.tokens, "total_tokens": done.tokens}
    content = {"id": uuid.uuid4().hex, "model": body.model or "ranker", "results": results, "usage": usage}
    return reply({**content, "cut_pairs": done.cut}, headers=cut_header(done.cut))
