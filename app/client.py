"""A client of the server: `Client`, and `AsyncClient` with the same calls to be awaited.

Does not know what the server answers from.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Self, TypedDict, TypeVar, Unpack

import httpx2
import numpy as np
from pydantic import BaseModel

from app.judgement_schemas import JudgementsReply, JudgeReply
from app.mine_schemas import JobFormat, Mined, MineReply
from app.routes.rerank import RerankReply
from app.schemas import CancelReply, EncodeReply, JobReply, ReadyReply, SearchReply
from retriever.errors import HoneError
from retriever.protocols import FloatArray, Side

TIMEOUT_SECONDS = 60.0
RETRIES = 2
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
class _Call(Generic[Reply]):
    """One request and the form of its reply."""

    method: str
    path: str
    body: Mapping[str, Any] | None
    reply: type[Reply]


def _encode(inputs: str | Sequence[str], input_type: Side) -> _Call[EncodeReply]:
    inputs = inputs if isinstance(inputs, str) else list(inputs)
    body = {"inputs": inputs, "input_type": input_type, "encoding_format": "base64"}
    return _Call("POST", "/v1/encode", body, EncodeReply)


def _encoded(reply: EncodeReply) -> Encoded:
    vectors = [np.frombuffer(base64.b64decode(str(one)), "<f4") for one in reply.embeddings]
    return Encoded(np.array(vectors, np.float32), reply.generation, reply.space)


def _search(
    queries: str | Sequence[str] | None, vectors: FloatArray | None, space: str | None, options: SearchOptions
) -> _Call[SearchReply]:
    if vectors is not None:
        body: dict[str, Any] = {"vectors": np.atleast_2d(vectors).tolist(), "space": space, **options}
    else:
        body = {"queries": queries if isinstance(queries, str) else list(queries or ()), **options}
    return _Call("POST", "/v1/search", body, SearchReply)


def _mine(queries: Sequence[MiningQuery], options: Mapping[str, Any]) -> dict[str, Any]:
    return {"queries": [{**query, "positives": list(query["positives"])} for query in queries], **options}


def _mine_job(queries: Sequence[MiningQuery], file_format: JobFormat, knobs: Mapping[str, Any]) -> _Call[JobReply]:
    return _Call("POST", "/v1/mine", {**_mine(queries, knobs), "job": file_format}, JobReply)


def _rerank(query: str, documents: Sequence[str], top_n: int | None) -> _Call[RerankReply]:
    body = {"query": query, "documents": list(documents), "top_n": top_n}
    return _Call("POST", "/v2/rerank", body, RerankReply)


def _judge(judgements: Sequence[Mapping[str, Any]]) -> _Call[JudgeReply]:
    return _Call("POST", "/v1/judgements", {"judgements": list(judgements)}, JudgeReply)


def _judgements(limit: int, before: int | None) -> _Call[JudgementsReply]:
    place = f"/v1/judgements?limit={limit}" + (f"&before={before}" if before else "")
    return _Call("GET", place, None, JudgementsReply)


def _error(response: httpx2.Response) -> ApiError:
    try:
        body = response.json()
        return ApiError(response.status_code, body["error"], body["error_type"], body.get("request_id"))
    except (KeyError, TypeError, ValueError):
        return ApiError(response.status_code, response.text[:200], "unknown", response.headers.get("x-request-id"))


def _wait_seconds(response: httpx2.Response, left: int) -> float | None:
    """Return how long to wait before the same request again; None if that is not to be tried."""
    wait = response.headers.get("retry-after", "")
    return float(wait) if left > 0 and response.status_code in (429, 503) and wait.isdecimal() else None


def _settings(url: str, api_key: str | None, timeout_seconds: float) -> dict[str, Any]:
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    return {"base_url": url, "headers": headers, "timeout": timeout_seconds}


def _line(line: str) -> Mined:
    if '"error"' in line[:9]:
        raise ApiError(200, line, "broken off", None)
    return Mined.model_validate_json(line)


class Client:
    """The calls of a server at ``url``, to be closed or used in a with block.

    Each raises ApiError if the server refuses; 429 and 503 are tried again, as often as ``retries`` says, when the
    server says.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
    ) -> None:
        self._http = httpx2.Client(**_settings(url, api_key, timeout_seconds))
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _send(self, call: _Call[Reply]) -> Reply:
        for left in range(self._retries, -1, -1):
            response = self._http.request(call.method, call.path, json=call.body)
            if response.is_success:
                return call.reply.model_validate_json(response.content)
            wait = _wait_seconds(response, left)
            if wait is None:
                break
            time.sleep(wait)
        raise _error(response)

    def ready(self) -> ReadyReply:
        """Tell which generation is served."""
        return self._send(_Call("GET", "/readyz", None, ReadyReply))

    def encode(self, inputs: str | Sequence[str], input_type: Side = "query") -> Encoded:
        """Encode texts with the query or the passage tower."""
        return _encoded(self._send(_encode(inputs, input_type)))

    def search(self, queries: str | Sequence[str], **options: Unpack[SearchOptions]) -> SearchReply:
        """Find the best passages for each query."""
        return self._send(_search(queries, None, None, options))

    def search_vectors(self, vectors: FloatArray, space: str, **options: Unpack[SearchOptions]) -> SearchReply:
        """Find the passages nearest to ``vectors`` float32 [q, dim] or [dim], which are of ``space``."""
        return self._send(_search(None, vectors, space, options))

    def mine(self, queries: Sequence[MiningQuery], **knobs: Any) -> MineReply:
        """Mine negatives for each query; ``knobs`` are those of /v1/mine, which are the miner's."""
        return self._send(_Call("POST", "/v1/mine", _mine(queries, knobs), MineReply))

    def mine_lines(self, queries: Sequence[MiningQuery], **knobs: Any) -> Iterator[Mined]:
        """Mine like ``mine`` and yield each query's negatives as soon as they are there."""
        body = {**_mine(queries, knobs), "stream": True}
        with self._http.stream("POST", "/v1/mine", json=body) as response:
            if not response.is_success:
                response.read()
                raise _error(response)
            yield from (_line(line) for line in response.iter_lines())

    def mine_job(self, queries: Sequence[MiningQuery], file_format: JobFormat = "hone", **knobs: Any) -> JobReply:
        """Let a job mine for many queries; ``result_lines`` gives what it made in ``file_format``."""
        return self._send(_mine_job(queries, file_format, knobs))

    def result_lines(self, job_id: str) -> Iterator[str]:
        """Yield the JSON lines that a mining job has made."""
        with self._http.stream("GET", f"/v1/jobs/{job_id}/result") as response:
            if not response.is_success:
                response.read()
                raise _error(response)
            yield from response.iter_lines()

    def rerank(self, query: str, documents: Sequence[str], top_n: int | None = None) -> RerankReply:
        """Put texts in order of relevance."""
        return self._send(_rerank(query, documents, top_n))

    def judge(self, judgements: Sequence[Mapping[str, Any]]) -> JudgeReply:
        """Store verdicts of people: {"query": {"id", "text"}, "passage", "relevant", "by", "note"}."""
        return self._send(_judge(judgements))

    def judgements(self, limit: int = 100, before: int | None = None) -> JudgementsReply:
        """List stored verdicts, newest first; ``before`` is the ``next`` of the page before."""
        return self._send(_judgements(limit, before))

    def rebuild(self) -> JobReply:
        """Ask for a new generation, or return the job that makes one already."""
        return self._send(_Call("POST", "/v1/index/rebuild", None, JobReply))

    def job(self, job_id: str) -> JobReply:
        """Show a job as it stands now."""
        return self._send(_Call("GET", f"/v1/jobs/{job_id}", None, JobReply))

    def cancel(self, job_id: str) -> CancelReply:
        """Ask a job to stop."""
        return self._send(_Call("POST", f"/v1/jobs/{job_id}/cancel", None, CancelReply))


class AsyncClient:
    """The calls of Client, to be awaited."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
    ) -> None:
        self._http = httpx2.AsyncClient(**_settings(url, api_key, timeout_seconds))
        self._retries = retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _send(self, call: _Call[Reply]) -> Reply:
        for left in range(self._retries, -1, -1):
            response = await self._http.request(call.method, call.path, json=call.body)
            if response.is_success:
                return call.reply.model_validate_json(response.content)
            wait = _wait_seconds(response, left)
            if wait is None:
                break
            await asyncio.sleep(wait)
        raise _error(response)

    async def ready(self) -> ReadyReply:
        """Tell which generation is served."""
        return await self._send(_Call("GET", "/readyz", None, ReadyReply))

    async def encode(self, inputs: str | Sequence[str], input_type: Side = "query") -> Encoded:
        """Encode texts with the query or the passage tower."""
        return _encoded(await self._send(_encode(inputs, input_type)))

    async def search(self, queries: str | Sequence[str], **options: Unpack[SearchOptions]) -> SearchReply:
        """Find the best passages for each query."""
        return await self._send(_search(queries, None, None, options))

    async def search_vectors(self, vectors: FloatArray, space: str, **options: Unpack[SearchOptions]) -> SearchReply:
        """Find the passages nearest to ``vectors`` float32 [q, dim] or [dim], which are of ``space``."""
        return await self._send(_search(None, vectors, space, options))

    async def mine(self, queries: Sequence[MiningQuery], **knobs: Any) -> MineReply:
        """Mine negatives for each query; ``knobs`` are those of /v1/mine, which are the miner's."""
        return await self._send(_Call("POST", "/v1/mine", _mine(queries, knobs), MineReply))

    async def mine_lines(self, queries: Sequence[MiningQuery], **knobs: Any) -> AsyncIterator[Mined]:
        """Mine like ``mine`` and yield each query's negatives as soon as they are there."""
        body = {**_mine(queries, knobs), "stream": True}
        async with self._http.stream("POST", "/v1/mine", json=body) as response:
            if not response.is_success:
                await response.aread()
                raise _error(response)
            async for line in response.aiter_lines():
                yield _line(line)

    async def mine_job(self, queries: Sequence[MiningQuery], file_format: JobFormat = "hone", **knobs: Any) -> JobReply:
        """Let a job mine for many queries; ``result_lines`` gives what it made in ``file_format``."""
        return await self._send(_mine_job(queries, file_format, knobs))

    async def result_lines(self, job_id: str) -> AsyncIterator[str]:
        """Yield the JSON lines that a mining job has made."""
        async with self._http.stream("GET", f"/v1/jobs/{job_id}/result") as response:
            if not response.is_success:
                await response.aread()
                raise _error(response)
            async for line in response.aiter_lines():
                yield line

    async def rerank(self, query: str, documents: Sequence[str], top_n: int | None = None) -> RerankReply:
        """Put texts in order of relevance."""
        return await self._send(_rerank(query, documents, top_n))

    async def judge(self, judgements: Sequence[Mapping[str, Any]]) -> JudgeReply:
        """Store verdicts of people: {"query": {"id", "text"}, "passage", "relevant", "by", "note"}."""
        return await self._send(_judge(judgements))

    async def judgements(self, limit: int = 100, before: int | None = None) -> JudgementsReply:
        """List stored verdicts, newest first; ``before`` is the ``next`` of the page before."""
        return await self._send(_judgements(limit, before))

    async def rebuild(self) -> JobReply:
        """Ask for a new generation, or return the job that makes one already."""
        return await self._send(_Call("POST", "/v1/index/rebuild", None, JobReply))

    async def job(self, job_id: str) -> JobReply:
        """Show a job as it stands now."""
        return await self._send(_Call("GET", f"/v1/jobs/{job_id}", None, JobReply))

    async def cancel(self, job_id: str) -> CancelReply:
        """Ask a job to stop."""
        return await self._send(_Call("POST", f"/v1/jobs/{job_id}/cancel", None, CancelReply))
