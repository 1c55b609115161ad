"""A client of the server: `Client`, and `AsyncClient` with the same calls to be awaited.

Does not know what the server answers from.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Self, Unpack

import httpx2

from app.client_calls import (
    ApiError,
    Call,
    Encoded,
    LineSplitter,
    MiningQuery,
    MoveReply,
    Reply,
    SearchOptions,
    encode_call,
    encoded,
    error_of,
    event_job,
    judge_call,
    judgements_call,
    mine_body,
    mine_job_call,
    mined_line,
    promote_call,
    rerank_call,
    search_call,
    settings,
    wait_seconds,
)
from app.judgement_schemas import JudgementsReply, JudgeReply
from app.mine_schemas import JobFormat, Mined, MineReply
from app.routes.generations import DiffReply, GenerationReply, GenerationsReply, PromotionReply
from app.routes.rerank import RerankReply
from app.schemas import CancelReply, JobReply, JobsReply, ReadyReply, SearchReply
from retriever.protocols import FloatArray, Side

__all__ = ["ApiError", "AsyncClient", "Client", "Encoded", "MiningQuery", "SearchOptions"]

TIMEOUT_SECONDS = 60.0
RETRIES = 2


class Client:
    """The calls of a server at ``url``, to be closed or used in a with block.

    Each raises ApiError if the server refuses; 429 and 503 are tried again, as often as ``retries`` says, when the
    server says. What yields lines is asked once.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
    ) -> None:
        self._http = httpx2.Client(**settings(url, api_key, timeout_seconds))
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _send(self, call: Call[Reply]) -> Reply:
        for left in range(self._retries, -1, -1):
            response = self._http.request(call.method, call.path, json=call.body)
            if response.is_success:
                return call.reply.model_validate_json(response.content)
            wait = wait_seconds(response, left)
            if wait is None:
                break
            time.sleep(wait)
        raise error_of(response)

    def _lines(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Iterator[str]:
        with self._http.stream(method, path, json=body) as response:
            if not response.is_success:
                response.read()
                raise error_of(response)
            lines = LineSplitter()
            for part in response.iter_bytes():
                yield from lines.take(part)
            yield from lines.rest()

    def ready(self) -> ReadyReply:
        """Tell which generation is served."""
        return self._send(Call("GET", "/readyz", None, ReadyReply))

    def encode(self, inputs: str | Sequence[str], input_type: Side = "query") -> Encoded:
        """Encode texts with the query or the passage tower."""
        return encoded(self._send(encode_call(inputs, input_type)))

    def search(self, queries: str | Sequence[str], **options: Unpack[SearchOptions]) -> SearchReply:
        """Find the best passages for each query."""
        return self._send(search_call(queries, None, None, options))

    def search_vectors(self, vectors: FloatArray, space: str, **options: Unpack[SearchOptions]) -> SearchReply:
        """Find the passages nearest to ``vectors`` float32 [q, dim] or [dim], which are of ``space``."""
        return self._send(search_call(None, vectors, space, options))

    def mine(self, queries: Sequence[MiningQuery], **knobs: Any) -> MineReply:
        """Mine negatives for each query; ``knobs`` are those of /v1/mine, which are the miner's."""
        return self._send(Call("POST", "/v1/mine", mine_body(queries, knobs), MineReply))

    def mine_lines(self, queries: Sequence[MiningQuery], **knobs: Any) -> Iterator[Mined]:
        """Mine like ``mine`` and yield each query's negatives as they come; warns in the end if queries were cut."""
        lines = self._lines("POST", "/v1/mine", {**mine_body(queries, knobs), "stream": True})
        yield from (mined for line in lines if (mined := mined_line(line)))

    def mine_job(self, queries: Sequence[MiningQuery], file_format: JobFormat = "hone", **knobs: Any) -> JobReply:
        """Let a job mine for many queries; ``result_lines`` gives what it made in ``file_format``."""
        return self._send(mine_job_call(queries, file_format, knobs))

    def result_lines(self, job_id: str) -> Iterator[str]:
        """Yield the JSON lines that a mining job has made."""
        yield from self._lines("GET", f"/v1/jobs/{job_id}/result")

    def rerank(self, query: str, documents: Sequence[str], top_n: int | None = None) -> RerankReply:
        """Put texts in order of relevance."""
        return self._send(rerank_call(query, documents, top_n))

    def judge(self, judgements: Sequence[Mapping[str, Any]]) -> JudgeReply:
        """Store verdicts of people: {"query": {"id", "text"}, "passage", "relevant", "by", "note"}."""
        return self._send(judge_call(judgements))

    def judgements(self, limit: int = 100, before: int | None = None) -> JudgementsReply:
        """List stored verdicts, newest first; ``before`` is the ``next`` of the page before."""
        return self._send(judgements_call(limit, before))

    def rebuild(self) -> JobReply:
        """Ask for a new generation, or return the job that makes one already."""
        return self._send(Call("POST", "/v1/index/rebuild", None, JobReply))

    def job(self, job_id: str) -> JobReply:
        """Show a job as it stands now."""
        return self._send(Call("GET", f"/v1/jobs/{job_id}", None, JobReply))

    def cancel(self, job_id: str) -> CancelReply:
        """Ask a job to stop."""
        return self._send(Call("POST", f"/v1/jobs/{job_id}/cancel", None, CancelReply))

    def jobs(self, limit: int = 100) -> JobsReply:
        """List the newest jobs."""
        return self._send(Call("GET", f"/v1/jobs?limit={limit}", None, JobsReply))

    def job_events(self, job_id: str) -> Iterator[JobReply]:
        """Yield the job whenever it has moved, last as it ended; a server that ends first breaks off: ask again."""
        yield from (job for line in self._lines("GET", f"/v1/jobs/{job_id}/events") if (job := event_job(line)))

    def generations(self, limit: int = 100) -> GenerationsReply:
        """List the newest generations and the last moves of SERVED."""
        return self._send(Call("GET", f"/v1/generations?limit={limit}", None, GenerationsReply))

    def generation(self, number: int) -> GenerationReply:
        """Show one generation: lineage, figures, the gate's verdict."""
        return self._send(Call("GET", f"/v1/generations/{number}", None, GenerationReply))

    def promote(self, number: int, *, force: bool = False) -> PromotionReply | JobReply:
        """Serve a generation if the gate lets it pass, or in any case with ``force``; a job may have to do it."""
        return self._send(promote_call(number, force)).root

    def rollback(self) -> PromotionReply | JobReply:
        """Serve the generation again that was served before; a job may have to do it."""
        return self._send(Call("POST", "/v1/generations/rollback", None, MoveReply)).root

    def diff(self, new: int, old: int) -> DiffReply:
        """Tell which dev queries generation ``new`` answers better or worse than ``old``."""
        return self._send(Call("GET", f"/v1/generations/{new}/diff/{old}", None, DiffReply))


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
        self._http = httpx2.AsyncClient(**settings(url, api_key, timeout_seconds))
        self._retries = retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _send(self, call: Call[Reply]) -> Reply:
        for left in range(self._retries, -1, -1):
            response = await self._http.request(call.method, call.path, json=call.body)
            if response.is_success:
                return call.reply.model_validate_json(response.content)
            wait = wait_seconds(response, left)
            if wait is None:
                break
            await asyncio.sleep(wait)
        raise error_of(response)

    async def _lines(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> AsyncIterator[str]:
        async with self._http.stream(method, path, json=body) as response:
            if not response.is_success:
                await response.aread()
                raise error_of(response)
            lines = LineSplitter()
            async for part in response.aiter_bytes():
                for line in lines.take(part):
                    yield line
            for line in lines.rest():
                yield line

    async def ready(self) -> ReadyReply:
        """Tell which generation is served."""
        return await self._send(Call("GET", "/readyz", None, ReadyReply))

    async def encode(self, inputs: str | Sequence[str], input_type: Side = "query") -> Encoded:
        """Encode texts with the query or the passage tower."""
        return encoded(await self._send(encode_call(inputs, input_type)))

    async def search(self, queries: str | Sequence[str], **options: Unpack[SearchOptions]) -> SearchReply:
        """Find the best passages for each query."""
        return await self._send(search_call(queries, None, None, options))

    async def search_vectors(self, vectors: FloatArray, space: str, **options: Unpack[SearchOptions]) -> SearchReply:
        """Find the passages nearest to ``vectors`` float32 [q, dim] or [dim], which are of ``space``."""
        return await self._send(search_call(None, vectors, space, options))

    async def mine(self, queries: Sequence[MiningQuery], **knobs: Any) -> MineReply:
        """Mine negatives for each query; ``knobs`` are those of /v1/mine, which are the miner's."""
        return await self._send(Call("POST", "/v1/mine", mine_body(queries, knobs), MineReply))

    async def mine_lines(self, queries: Sequence[MiningQuery], **knobs: Any) -> AsyncIterator[Mined]:
        """Mine like ``mine`` and yield each query's negatives as they come; warns in the end if queries were cut."""
        async for line in self._lines("POST", "/v1/mine", {**mine_body(queries, knobs), "stream": True}):
            if mined := mined_line(line):
                yield mined

    async def mine_job(self, queries: Sequence[MiningQuery], file_format: JobFormat = "hone", **knobs: Any) -> JobReply:
        """Let a job mine for many queries; ``result_lines`` gives what it made in ``file_format``."""
        return await self._send(mine_job_call(queries, file_format, knobs))

    async def result_lines(self, job_id: str) -> AsyncIterator[str]:
        """Yield the JSON lines that a mining job has made."""
        async for line in self._lines("GET", f"/v1/jobs/{job_id}/result"):
            yield line

    async def rerank(self, query: str, documents: Sequence[str], top_n: int | None = None) -> RerankReply:
        """Put texts in order of relevance."""
        return await self._send(rerank_call(query, documents, top_n))

    async def judge(self, judgements: Sequence[Mapping[str, Any]]) -> JudgeReply:
        """Store verdicts of people: {"query": {"id", "text"}, "passage", "relevant", "by", "note"}."""
        return await self._send(judge_call(judgements))

    async def judgements(self, limit: int = 100, before: int | None = None) -> JudgementsReply:
        """List stored verdicts, newest first; ``before`` is the ``next`` of the page before."""
        return await self._send(judgements_call(limit, before))

    async def rebuild(self) -> JobReply:
        """Ask for a new generation, or return the job that makes one already."""
        return await self._send(Call("POST", "/v1/index/rebuild", None, JobReply))

    async def job(self, job_id: str) -> JobReply:
        """Show a job as it stands now."""
        return await self._send(Call("GET", f"/v1/jobs/{job_id}", None, JobReply))

    async def cancel(self, job_id: str) -> CancelReply:
        """Ask a job to stop."""
        return await self._send(Call("POST", f"/v1/jobs/{job_id}/cancel", None, CancelReply))

    async def jobs(self, limit: int = 100) -> JobsReply:
        """List the newest jobs."""
        return await self._send(Call("GET", f"/v1/jobs?limit={limit}", None, JobsReply))

    async def job_events(self, job_id: str) -> AsyncIterator[JobReply]:
        """Yield the job whenever it has moved, last as it ended; a server that ends first breaks off: ask again."""
        async for line in self._lines("GET", f"/v1/jobs/{job_id}/events"):
            if job := event_job(line):
                yield job

    async def generations(self, limit: int = 100) -> GenerationsReply:
        """List the newest generations and the last moves of SERVED."""
        return await self._send(Call("GET", f"/v1/generations?limit={limit}", None, GenerationsReply))

    async def generation(self, number: int) -> GenerationReply:
        """Show one generation: lineage, figures, the gate's verdict."""
        return await self._send(Call("GET", f"/v1/generations/{number}", None, GenerationReply))

    async def promote(self, number: int, *, force: bool = False) -> PromotionReply | JobReply:
        """Serve a generation if the gate lets it pass, or in any case with ``force``; a job may have to do it."""
        return (await self._send(promote_call(number, force))).root

    async def rollback(self) -> PromotionReply | JobReply:
        """Serve the generation again that was served before; a job may have to do it."""
        return (await self._send(Call("POST", "/v1/generations/rollback", None, MoveReply))).root

    async def diff(self, new: int, old: int) -> DiffReply:
        """Tell which dev queries generation ``new`` answers better or worse than ``old``."""
        return await self._send(Call("GET", f"/v1/generations/{new}/diff/{old}", None, DiffReply))
