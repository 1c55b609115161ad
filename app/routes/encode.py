"""POST /v1/encode: texts to vectors.

Does not know how texts are encoded.
"""

import base64

from fastapi import APIRouter
from fastapi.responses import Response

from app.replies import BODY, MODEL, errors, reply
from app.schemas import EncodeReply, EncodeRequest
from app.service import ServiceOf, SnapshotOf
from retriever.protocols import FloatArray

router = APIRouter(tags=["search"])


@router.post("/v1/encode", response_model=EncodeReply, responses=errors(*BODY, *MODEL))
async def encode(body: EncodeRequest, snapshot: SnapshotOf, service: ServiceOf) -> Response:
    """Encode texts with the query or the passage tower of the served generation."""
    done = await service.encode(snapshot, body.input_type, body.inputs)
    vectors = done.values
    return reply(
        {
            "generation": snapshot.generation.number,
            "space": snapshot.space,
            "dimensions": vectors.shape[1],
            "cut_inputs": done.cut,
            "embeddings": vectors if body.encoding_format == "float" else packed(vectors),
        }
    )


def packed(vectors: FloatArray) -> list[str]:
    """Return each vector's float32 numbers, little-endian, in base64."""
    return [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
