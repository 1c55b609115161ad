"""What the client sends for each call and reads from each answer, whether it waits or is awaited.

Does not know connections.
"""

import base64
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypedDict, TypeVar

import httpx2
import numpy as np
from pydantic import BaseModel, RootModel

from app.judgement_schemas import JudgementsReply, JudgeReply
from app.mine_schemas import JobFormat, Mined
from app.routes.generations import PromotionReply
from app.routes.rerank import RerankReply
from app.schemas import EncodeReply, JobReply, SearchReply
from retriever.counting import counted
from retriever.errors import HoneError
from retriever.protocols import FloatArray, Side

Reply = TypeVar("Reply", bound=BaseModel)


class ApiError(HoneError):
    """The server refused: ``status``, its one-line ``error``, its ``kind`` and the request's id."""

    def __init__(self, status: int, error: str, kind: str, request_id: str | None) -> None:
        super().__init__(f"{status} {kind}: {error}" + (f" (request {request_id})" if request_id else ""))
        self.status, self.error, self.kind, self.request_id = status, error, kind, request_id


class SearchOptions(TypedDict, total=False):
    """What a search may ask for, as /v1/search has it."""

    top_k: int
    exclude_ids: Sequence[str]
    filter: Mapping[str, Any]
    mode: Literal["dense", "lexical", "hybrid"]
    fusion: Literal["rrf", "weights"]
    dense_weight: float
    exact: bool
    rerank: bool
    rerank_depth: int
    with_text: bool


class MiningQuery(TypedDict):
    """A query to mine for; ``positives`` are ids of passages."""

    id: str
    text: str
    positives: Sequence[str]


@dataclass(frozen=True)
class Encoded:
    """Vectors float32 [n, dim], the generation that they come from, and the space that search asks for."""

    vectors: FloatArray
    generation: int
    space: str


@dataclass(frozen=True)
class Call(Generic[Reply]):
    """One request and the form of its reply."""

    method: str
    path: str
    body: Mapping[str, Any] | None
    reply: type[Reply]


class MoveReply(RootModel[PromotionReply | JobReply]):
    """SERVED has moved, or a job will move it: of a server that may not write to its store."""


def encode_call(inputs: str | Sequence[str], input_type: Side) -> Call[EncodeReply]:
    """Ask for vectors in their shortest form."""
    inputs = inputs if isinstance(inputs, str) else list(inputs)
    body = {"inputs": inputs, "input_type": input_type, "encoding_format": "base64"}
    return Call("POST", "/v1/encode", body, EncodeReply)


def encoded(reply: EncodeReply) -> Encoded:
    """Read the vectors of what ``encode_call`` asked for."""
    vectors = [np.frombuffer(base64.b64decode(str(one)), "<f4") for one in reply.embeddings]
    return Encoded(np.array(vectors, np.float32), reply.generation, reply.space)


def search_call(
    queries: str | Sequence[str] | None, vectors: FloatArray | None, space: str | None, options: SearchOptions
) -> Call[SearchReply]:
    """Ask for hits by ``vectors`` of ``space`` if there are some, else by ``queries``."""
    if vectors is not None:
        body: dict[str, Any] = {"vectors": np.atleast_2d(vectors).tolist(), "space": space, **options}
    else:
        body = {"queries": queries if isinstance(queries, str) else list(queries or ()), **options}
    return Call("POST", "/v1/search", body, SearchReply)


def mine_body(queries: Sequence[MiningQuery], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what /v1/mine reads."""
    return {"queries": [{**query, "positives": list(query["positives"])} for query in queries], **options}


def mine_job_call(queries: Sequence[MiningQuery], file_format: JobFormat, knobs: Mapping[str, Any]) -> Call[JobReply]:
    """Ask for a job that mines into a file of ``file_format``."""
    return Call("POST", "/v1/mine", {**mine_body(queries, knobs), "job": file_format}, JobReply)


def rerank_call(query: str, documents: Sequence[str], top_n: int | None) -> Call[RerankReply]:
    """Ask for an order of ``documents``."""
    body = {"query": query, "documents": list(documents), "top_n": top_n}
    return Call("POST", "/v2/rerank", body, RerankReply)


def judge_call(judgements: Sequence[Mapping[str, Any]]) -> Call[JudgeReply]:
    """Ask for verdicts to be stored."""
    return Call("POST", "/v1/judgements", {"judgements": list(judgements)}, JudgeReply)


def judgements_call(limit: int, before: int | None) -> Call[JudgementsReply]:
    """Ask for a page of stored verdicts."""
    place = f"/v1/judgements?limit={limit}" + ("" if before is None else f"&before={before}")
    return Call("GET", place, None, JudgementsReply)


def promote_call(number: int, force: bool) -> Call[MoveReply]:
    """Ask for generation ``number`` to be served."""
    query = "?force=true" if force else ""
    return Call("POST", f"/v1/generations/{number}/promote{query}", None, MoveReply)


def error_of(response: httpx2.Response) -> ApiError:
    """Return what a refusal says."""
    try:
        body = response.json()
        return ApiError(response.status_code, body["error"], body["error_type"], body.get("request_id"))
    except (KeyError, TypeError, ValueError):
        return ApiError(response.status_code, response.text[:200], "unknown", response.headers.get("x-request-id"))


def wait_seconds(response: httpx2.Response, left: int) -> float | None:
    """Return how long to wait before the same request again; None if that is not to be tried."""
    wait = response.headers.get("retry-after", "")
    return float(wait) if left > 0 and response.status_code in (429, 503) and wait.isdecimal() else None


class LineSplitter:
    """Cuts a stream of bytes at each newline alone: JSON may hold other characters at which text would be cut."""

    def __init__(self) -> None:
        self._left = b""

    def take(self, part: bytes) -> list[str]:
        """Return the lines that ``part`` ends."""
        *lines, self._left = (self._left + part).split(b"\n")
        return [line.decode() for line in lines]

    def rest(self) -> list[str]:
        """Return what stands behind the last newline, if anything does."""
        return [self._left.decode()] if self._left else []


def settings(url: str, api_key: str | None, timeout_seconds: float) -> dict[str, Any]:
    """Return what a connection is made with."""
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    return {"base_url": url, "headers": headers, "timeout": timeout_seconds}


def mined_line(line: str) -> Mined | None:
    """Read a line of a mining stream; None for the last where that warns of queries that were cut."""
    if '"error"' in line[:9]:
        raise ApiError(200, line, "broken off", None)
    if '"cut_queries"' in line[:15]:
        cut = counted(json.loads(line)["cut_queries"], "query is", "queries are")
        warnings.warn(f"{cut} longer than the model reads; the rest was not read", stacklevel=2)
        return None
    return Mined.model_validate_json(line)


def event_job(line: str) -> JobReply | None:
    """Return the job that a line of server-sent events holds, None for a line of another kind."""
    return JobReply.model_validate_json(line.removeprefix("data: ")) if line.startswith("data: ") else None
