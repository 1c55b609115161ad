"""Who may call which route, and how often: a key's scopes and its limits.

Does not know how keys are kept, nor what a route does.
"""

import math
import time
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.admission import TooManyTokensError
from app.allowance import ALLOWANCE, SpentError, TokenWindow
from app.keys import ADMIN, ENCODE, MINE, SEARCH, WRITE, Key, Keys
from app.replies import Refusal, error_reply

ANY = "any"
"""A route that every valid key reaches."""
OPEN = frozenset({"/", "/docs", "/health", "/livez", "/metrics", "/openapi.json", "/readyz"})
"""What is read without a key: health, figures, documentation."""
OPEN_FOLDERS = ("/static-offline-docs/",)
JUDGEMENTS = "/v1/judgements"
SCOPE_OF = {
    "/": ENCODE,
    "/embed": ENCODE,
    "/rerank": SEARCH,
    "/v1/embeddings": ENCODE,
    "/v1/encode": ENCODE,
    "/v1/index/rebuild": WRITE,
    JUDGEMENTS: WRITE,
    "/v1/mine": MINE,
    "/v1/rerank": SEARCH,
    "/v1/search": SEARCH,
    "/v2/rerank": SEARCH,
}


def scope_of(method: str, path: str) -> str | None:
    """Return the scope that a request needs, "any" for any valid key, None for a route that is open.

    What changes something and is not named here needs admin. Who may cancel a job depends on its kind, which only its
    route knows: it asks by ``demand``. To read what people judged takes what judging takes: they are named there.
    """
    if path.startswith("/v1/jobs/") and path.endswith(("/result", "/cancel")):
        return MINE if path.endswith("/result") else ANY
    if method in ("GET", "HEAD", "OPTIONS") and path != JUDGEMENTS:
        return None if path in OPEN or path.startswith(OPEN_FOLDERS) else ANY
    return SCOPE_OF.get(path, ADMIN)


class Authorize:
    """Answers 401 without a valid key, 403 beyond its scopes, 429 beyond its requests or tokens a minute.

    All but the tokens is looked at before a body is read.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        """Each process counts a key's requests and tokens by itself."""
        self._app = app
        self._keys = keys
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._tokens = TokenWindow()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; scope["state"] gets the ``key``'s id."""
        wanted = scope_of(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if wanted is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            key = await run_in_threadpool(self._keys.find, offered_key(Headers(scope=scope)))
        except SQLAlchemyError:
            refusal = error_reply(request, 503, "the database of keys does not answer", headers={"Retry-After": "2"})
            await refusal(scope, receive, send)
            return
        request.state.key, request.state.bearer = None if key is None else key.id, key
        refused = self._refused(key, wanted)
        if refused is None:
            ALLOWANCE.set(None if key is None else partial(self._charge, key))
            await self._app(scope, receive, send)
            return
        status, message, headers = refused
        await error_reply(request, status, message, headers=headers)(scope, receive, send)

    def _refused(self, key: Key | None, wanted: str) -> tuple[int, str, dict[str, str]] | None:
        if key is None:
            message = "send a valid key as `Authorization: Bearer …`; `hone keys create` makes one"
            return 401, message, {"WWW-Authenticate": "Bearer"}
        if wanted != ANY and not key.may(wanted):
            return 403, _beyond(key, wanted), {}
        if key.per_minute is None:
            return None
        item = RateLimitItemPerMinute(key.per_minute)
        if self._limiter.hit(item, key.id):
            return None
        forgotten = self._limiter.get_window_stats(item, key.id).reset_time  # the oldest that counts
        seconds = max(1, math.ceil(forgotten - time.time()))
        return 429, f"key {key.id} may ask {key.per_minute} times a minute", {"Retry-After": str(seconds)}

    def _charge(self, key: Key, tokens: int) -> None:
        """Count ``tokens`` of ``key``. Raises TooManyTokensError for more than it ever may, SpentError for now."""
        limit = key.tokens_per_minute
        if limit is None:
            return
        told = f"key {key.id} may spend {limit} tokens a minute, this is {tokens}"
        if tokens > limit:
            raise TooManyTokensError(f"{told}; send it in parts")
        seconds = self._tokens.spend(key.id, tokens, limit)
        if seconds:
            raise SpentError(told, math.ceil(seconds))


def demand(request: Request, scope: str) -> None:
    """Raise Refusal, 403, if the key of ``request`` does not reach ``scope``; where no keys are asked for, all do."""
    key: Key | None = getattr(request.state, "bearer", None)
    if key is not None and not key.may(scope):
        raise Refusal(403, _beyond(key, scope))


def _beyond(key: Key, scope: str) -> str:
    return f"key {key.id} may {', '.join(key.scopes)}; this needs {scope}"


def offered_key(headers: Headers) -> str:
    """Return the key of a request: a bearer token, or what x-api-key says."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")


def document_keys(app: FastAPI) -> None:
    """Let the OpenAPI document say which routes need a key, and what they answer without."""
    made = app.openapi

    def documented() -> dict[str, Any]:
        fresh = app.openapi_schema is None
        document = made()
        if not fresh:
            return document
        bearer = {"type": "http", "scheme": "bearer"}
        document.setdefault("components", {}).setdefault("securitySchemes", {})["key"] = bearer
        for path, methods in document["paths"].items():
            for method, route in methods.items():
                if scope_of(method.upper(), path) is not None:
                    _document(route)
        return document

    app.openapi = documented  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def _document(route: dict[str, Any]) -> None:
    like = next(response for status, response in route["responses"].items() if status == "500")
    texts = {"401": "No valid key.", "403": "The key does not reach this far.", "429": "Too often."}
    for status, text in texts.items():
        route["responses"].setdefault(status, {"description": text, "content": like["content"]})
    retry = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}}
    route["responses"]["429"].setdefault("headers", retry)
    route["security"] = [{"key": []}]
