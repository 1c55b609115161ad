"""POST /v1/encode: texts to vectors.

Does not know how texts are encoded.
"""

import base64

from fastapi import APIRouter
from fastapi.responses import Response

from app.replies import errors, reply
from app.schemas import EncodeReply, EncodeRequest
from app.service import ServiceOf, SnapshotOf
from retriever.protocols import FloatArray

router = APIRouter(tags=["search"])


@router.post("/v1/encode", response_model=EncodeReply, responses=errors(400, 413, 415, 422, 503))
def encode(body: EncodeRequest, snapshot: SnapshotOf, service: ServiceOf) -> Response:
    """Encode texts with the query or the passage tower of the served generation."""
    towers = {"query": snapshot.encoder.encode_queries, "passage": snapshot.encoder.encode_passages}
    vectors = towers[body.input_type](body.inputs)
    service.telemetry.encoded.labels(body.input_type).inc(len(vectors))
    return reply(
        {
            "generation": snapshot.generation.number,
            "space": snapshot.space,
            "dimensions": vectors.shape[1],
            "embeddings": vectors if body.encoding_format == "float" else _packed(vectors),
        }
    )


def _packed(vectors: FloatArray) -> list[str]:
    return [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
