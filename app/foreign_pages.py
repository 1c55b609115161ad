"""Keeps web pages of others from a server that asks for no keys: a browser on its machine would act for them.

Does not know routes or keys.
"""

import ipaddress
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.replies import error_reply

READING = ("GET", "HEAD", "OPTIONS")
"""These change nothing, and a browser sends no Origin with a page's own."""


class RefuseForeignPages:
    """Answers 403 to a request that a browser sends for a page of another origin, unless it only reads."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; programs other than browsers send no Origin."""
        origin = Headers(scope=scope).get("origin") if scope["type"] == "http" else None
        if origin is None or scope["method"] in READING or _is_own(origin, scope):
            await self._app(scope, receive, send)
            return
        message = f"a page of {origin[:100]} may not ask a server without keys; `hone serve --require-keys` has some"
        await error_reply(Request(scope), 403, message)(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Tell whether ``host`` is an address that no other machine reaches; a name may stand for any."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_own(origin: str, scope: Scope) -> bool:
    """Tell whether ``origin`` is this server's; on loopback no name but its own counts: any may be made to mean it."""
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:
        return False
    server = scope.get("server")
    arrived = "" if server is None else server[0]
    return is_loopback(host) or (
        not is_loopback(arrived) and urlsplit(origin).netloc == Headers(scope=scope).get("host")
    )
