"""A server that speaks OpenAI's chat completions over HTTP and misbehaves on demand. It does not know pytest."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.app.serve_process import free_port
from tests.app.served import wait_for

Reply = Callable[[str, int], "str | Response | float"]
"""Prompt and how often it came before, to an answer in words, a whole response, or seconds to say nothing."""


class ChatServer:
    """What was asked: request ``bodies``, their ``keys``, and how many were ``most`` answered at a time."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.port = free_port()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.most = 0
        self._open = 0
        self._times: Counter[str] = Counter()

    @property
    def url(self) -> str:
        """What a judge is given."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def prompts(self) -> Counter[str]:
        """How often each prompt came."""
        return Counter(body["messages"][-1]["content"] for body in self.bodies)

    async def complete(self, request: Request) -> Response:
        """Answer one request."""
        body = await request.json()
        self.bodies.append(body)
        self.keys.add(request.headers.get("authorization"))
        prompt = body["messages"][-1]["content"]
        self._open += 1
        self.most = max(self.most, self._open)
        try:
            said = self.reply(prompt, self._times[prompt])
            self._times[prompt] += 1
            if isinstance(said, float):
                await asyncio.sleep(said)
                said = "yes"
            await asyncio.sleep(0.01)
            return said if isinstance(said, Response) else completion(said, prompt)
        finally:
            self._open -= 1


def completion(text: str | None, prompt: str = "") -> Response:
    """Return a reply in OpenAI's form, which counts words as tokens."""
    usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len((text or "").split())}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return JSONResponse({"object": "chat.completion", "choices": [choice], "usage": usage})


def failing(status: int, text: str = "no", retry_after: str | None = None) -> Response:
    """Return an error."""
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return PlainTextResponse(text, status, headers)


def dribbling() -> Response:
    """Return a reply that never ends, a byte every tenth of a second."""

    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.1)

    return StreamingResponse(parts())


@contextmanager
def chatting(reply: Reply) -> Iterator[ChatServer]:
    """Serve on a free port of this machine, in a thread."""
    chat = ChatServer(reply)
    routes = [Route("/v1/chat/completions", chat.complete, methods=["POST"])]
    app = Starlette(routes=routes)
    config = uvicorn.Config(app, port=chat.port, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started, seconds=60)
        yield chat
    finally:
        server.should_exit = True
        thread.join(20)
