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
    """Answers 403 to a request that a browser sends for a page of another origin, unless it only reads.

    Unless the server is ``proxied``, neither may it read by a name that was made to mean this machine: a browser takes
    such a page for the server's own (DNS rebinding, Jackson et al., CCS 2007). An address cannot be made to mean
    another.
    """

    def __init__(self, app: ASGIApp, *, proxied: bool) -> None:
        self._app = app
        self._proxied = proxied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; programs other than browsers send no Origin."""
        message = self._refusal(scope) if scope["type"] == "http" else None
        if message is None:
            await self._app(scope, receive, send)
        else:
            await error_reply(Request(scope), 403, message)(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host"), headers.get("origin")
        if not self._proxied and host is not None and _is_on_loopback(scope) and not _is_sure(_name(f"//{host}")):
            return (
                f"a server without keys is asked by an address or as localhost, not as {host[:100]}; `hone serve "
                "--require-keys` asks for keys, --insecure says that a proxy in front does"
            )
        if origin is not None and scope["method"] not in READING and not self._is_own(origin, scope):
            return f"a page of {origin[:100]} may not ask a server without keys; `hone serve --require-keys` has some"
        return None

    def _is_own(self, origin: str, scope: Scope) -> bool:
        """Tell whether ``origin`` is this server's; on loopback its own name counts only where a proxy has it."""
        return is_loopback(_name(origin)) or (
            (self._proxied or not _is_on_loopback(scope))
            and origin.partition("://")[2] == Headers(scope=scope).get("host")
        )


def is_loopback(host: str) -> bool:
    """Tell whether ``host`` is an address that no other machine reaches; a name may stand for any."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_sure(host: str) -> bool:
    """Tell whether ``host`` means what it says wherever it is looked up: an address, localhost or a name within it."""
    if host.rstrip(".") == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _name(url: str) -> str:
    """Return the host that ``url`` names, "" where it names none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_on_loopback(scope: Scope) -> bool:
    """Tell whether the request came by an address that no other machine reaches."""
    server = scope.get("server")
    return server is not None and is_loopback(server[0])
