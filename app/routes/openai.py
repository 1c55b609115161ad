"""POST /v1/embeddings as OpenAI's clients speak it.

Does not know how texts are encoded.
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from app.replies import BODY, MODEL, OPENAI_ROUTE, Refusal, cut_header, errors, reply
from app.routes.encode import check_dimensions, first_of, packed
from app.schemas import MAX_INPUTS, Body, Dimensions, Text, TextList, Texts
from app.service import ServiceOf, SnapshotOf

router = APIRouter(tags=["faces"])


def _refuse_token_ids(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], int | list):
        raise PydanticCustomError(
            "token_ids",
            "token ids are another tokenizer's: send texts (in langchain, check_embedding_ctx_length=False)",
        )
    return value


class EmbeddingsRequest(Body):
    """Texts to encode, as OpenAI's API has them."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "passage", "input": ["read a file line by line"]}]}
    )

    input: Annotated[Texts, BeforeValidator(_refuse_token_ids, json_schema_input_type=Text | TextList)] = Field(
        description=f"One text or at most {MAX_INPUTS}."
    )
    model: str = Field(
        min_length=1,
        max_length=256,
        description="A name that ends in query or passage says the side; any other will do where both sides are alike.",
    )
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="Numbers, or base64 of little-endian float32."
    )
    dimensions: Dimensions = None
    user: str | None = Field(default=None, max_length=1024, description="Not used.")


class Embedding(BaseModel):
    """One input's vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(BaseModel):
    """Vectors in the order of the inputs.

    The headers x-hone-generation and x-hone-cut-inputs tell the generation, and how many inputs were cut.
    """

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


@router.post(OPENAI_ROUTE, response_model=EmbeddingsReply, responses=errors(*BODY, 404, *MODEL, openai=True))
async def embeddings(body: EmbeddingsRequest, snapshot: SnapshotOf, service: ServiceOf) -> Response:
    """Encode texts; errors have OpenAI's shape here."""
    side = snapshot.models.side_of(body.model)
    if side is None:
        raise Refusal(404, f"model: {body.model!r} has two sides that differ; ask for 'query' or 'passage'")
    check_dimensions(body.dimensions, snapshot)
    done = await service.encode(snapshot, side, body.input)
    first = first_of(done.values, body.dimensions)
    vectors = first if body.encoding_format == "float" else packed(first)
    data = [{"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(vectors)]
    usage = {"prompt_tokens": done.tokens, "total_tokens": done.tokens}
    content = {"object": "list", "data": data, "model": body.model, "usage": usage}
    return reply(content, headers=cut_header(done.cut))
