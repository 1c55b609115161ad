"""What surrounds every request: an id, a log line, metrics, the last net for errors, and a limit on the body.

Does not know routes.
"""

import re
import time
import uuid

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.draining import is_draining
from app.replies import Refusal, error_reply
from app.telemetry import Telemetry

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Observe:
    """Names, times, counts and logs each request, and answers 500 for an error that nobody expected."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        """``telemetry`` takes the counts and the log lines."""
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; scope["state"] gets its ``request_id``, and gives the ``generation`` it was read from."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = _request_id(Headers(scope=scope).get("x-request-id", ""))
        status: int | None = None
        started = time.perf_counter()

        async def stamp(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = state["request_id"]
                if is_draining(scope["app"]):
                    headers["connection"] = "close"  # the client asks another server next
                if "generation" in state:
                    headers["x-hone-generation"] = str(state["generation"])
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=state["request_id"]):
            try:
                await self._app(scope, receive, stamp)
            except Exception as error:
                self._telemetry.log.exception("request_failed", reason=str(error))
                if status is not None:
                    raise
                request = Request(scope)
                message = f"an error of the server; its log names it under request id {state['request_id']}"
                await error_reply(request, 500, message)(scope, receive, stamp)
            finally:
                self._record(scope, status or 500, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._telemetry.requests.labels(route, method, status).inc()
        self._telemetry.seconds.labels(route).observe(seconds)
        self._telemetry.log.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            seconds=round(seconds, 6),
            generation=scope["state"].get("generation"),
            key=scope["state"].get("key"),
        )


def _request_id(offered: str) -> str:
    return offered if REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex


class BodyLimit:
    """Refuses a body of more than ``limit`` bytes with 413, whether or not it declares its length."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        """``limit`` is in bytes."""
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request whose body is counted as it arrives."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limit:
            if "expect" not in headers:
                await self._drain(receive)
            message = self._refusal().detail
            await error_reply(Request(scope), 413, message)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                if message.get("more_body", False):
                    await self._drain(receive)
                raise self._refusal()
            return message

        await self._app(scope, counted, send)

    def _refusal(self) -> Refusal:
        return Refusal(413, f"the body is larger than {self._limit} bytes; send it in parts")

    async def _drain(self, receive: Receive) -> None:
        """Read on for as much again, unkept: most clients read the answer only once they have sent their body."""
        left = self._limit
        while left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
