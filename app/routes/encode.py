"""POST /v1/encode: texts to vectors.

Does not know how texts are encoded.
"""

import base64

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response

from app.replies import BODY, MODEL, Refusal, errors, reply
from app.schemas import EncodeReply, EncodeRequest
from app.service import ServiceOf, SnapshotOf
from app.snapshot import Snapshot
from retriever.protocols import FloatArray

router = APIRouter(tags=["search"])


@router.post("/v1/encode", response_model=EncodeReply, responses=errors(*BODY, *MODEL))
async def encode(body: EncodeRequest, snapshot: SnapshotOf, service: ServiceOf) -> Response:
    """Encode texts with the query or the passage tower of the served generation."""
    check_dimensions(body.dimensions, snapshot)
    done = await service.encode(snapshot, body.input_type, body.inputs)
    vectors = first_of(done.values, body.dimensions)
    whole = vectors.shape[1] == snapshot.encoder.dimensions
    return reply(
        {
            "generation": snapshot.generation.number,
            "space": snapshot.space if whole else f"{snapshot.space}/{vectors.shape[1]}",
            "dimensions": vectors.shape[1],
            "cut_inputs": done.cut,
            "embeddings": vectors if body.encoding_format == "float" else packed(vectors),
        }
    )


def check_dimensions(dimensions: int | None, snapshot: Snapshot) -> None:
    """Refuse more ``dimensions`` than the model has."""
    if dimensions is not None and dimensions > snapshot.encoder.dimensions:
        raise Refusal(422, f"dimensions: {dimensions}, but this model has {snapshot.encoder.dimensions}")


def first_of(vectors: FloatArray, dimensions: int | None) -> FloatArray:
    """Return the first ``dimensions`` numbers of ``vectors`` float32 [n, dim], each as long as its whole was.

    As OpenAI does it: good for a model trained for it (Kusupati et al. 2022, "Matryoshka representation learning").
    """
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    part = vectors[:, :dimensions]
    lengths = [np.linalg.norm(each, axis=1, keepdims=True) for each in (vectors, part)]
    scaled: FloatArray = (part * (lengths[0] / np.maximum(lengths[1], 1e-12))).astype(np.float32)
    return scaled


def packed(vectors: FloatArray) -> list[str]:
    """Return each vector's float32 numbers, little-endian, in base64."""
    return [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
