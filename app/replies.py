"""Every reply's form: one error body for all errors, JSON with float32 kept short, and what /docs says of both.

Does not know any route.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError, TimeoutError
from starlette.exceptions import HTTPException

from app.admission import ComputeError, NotComputedError, OverloadedError, TooManyTokensError
from app.allowance import SpentError
from app.full_disk import is_full
from app.hidden_paths import hide_paths
from app.jobs import TooLateError, UnknownJobError
from app.mining import NoSourceError
from app.models import NoRankerError
from app.searching import NoLexicalIndexError
from retriever.errors import HoneError, InputError, StoreError

OPENAI_ROUTE = "/v1/embeddings"
SHOWN_PROBLEMS, SHOWN_CHARACTERS = 10, 1000
RETRY_AFTER_SECONDS = 2
NO_ROOM_ON_DISK = "no space left on the disk of the server"
DATABASE = "the database of jobs and judgements"
NO_TEXT = "no_text"
"""Type of a problem that becomes 400, as text-embeddings-inference has it, and not 422."""
BODY = (400, 413, 415, 422)
"""Statuses of a route that reads a body."""
MODEL = (429, 503)
"""Statuses of a route that a model answers."""

ERROR_TYPES = {
    400: "malformed",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    415: "not_json",
    422: "invalid",
    424: "not_computed",
    429: "overloaded",
    500: "internal",
    503: "unavailable",
    507: "disk_full",
}
MEANINGS = {
    400: "The body is not JSON; of text-embeddings-inference's routes also: it holds no text.",
    401: "The request names no key, or one that is not known.",
    403: "The key does not reach this far.",
    404: "There is no such thing.",
    409: "The request does not fit the state that it met.",
    413: "Too many or too large; the message names the limit.",
    415: "The body was not sent as application/json.",
    422: "A field is invalid; `detail` names it.",
    424: "The model failed on an input.",
    429: "Too much at once; try again after `Retry-After` seconds.",
    500: "An error of the server; its log names it under the request's id.",
    503: "What the answer comes from (snapshot, model, database) is not there; try again after `Retry-After` seconds.",
    507: "No room left on the server's disk or in its database: somebody must make room first.",
}

STATUSES: dict[type[HoneError], int] = {
    UnknownJobError: 404,
    NoRankerError: 409,
    NoSourceError: 409,
    NoLexicalIndexError: 409,
    TooLateError: 409,
    TooManyTokensError: 413,
    InputError: 422,
    OverloadedError: 429,
    ComputeError: 500,
    NotComputedError: 503,
    StoreError: 503,  # an artifact went away or was altered under the snapshot; another one will come
}
"""What an error becomes; of two that fit, the first."""


class ErrorBody(BaseModel):
    """The body of every error."""

    error: str = Field(description="What is wrong and what to do, in one line.")
    error_type: str = Field(description=f"One of {', '.join(ERROR_TYPES.values())}.")
    detail: Any = Field(description="The single problems where there are several, else null.")
    request_id: str = Field(description="Also in the header x-request-id and in the server's log.")


class Refusal(HTTPException):
    """A request that is answered with an error of a given status."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        """``message`` says what is wrong and what to do."""
        super().__init__(status, message, headers)


def not_ready(message: str) -> Refusal:
    """Return the refusal of a server that has nothing to answer from yet."""
    return _later(503, message)


def _later(status: int, message: str, seconds: int = RETRY_AFTER_SECONDS) -> Refusal:
    return Refusal(status, message, {"Retry-After": str(seconds)})


class OpenAIError(BaseModel):
    """What is wrong, as OpenAI's API says it."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorBody(BaseModel):
    """The body of every error on OpenAI's route."""

    error: OpenAIError


def errors(*statuses: int, openai: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return what the OpenAPI document says of the errors that a route can give; 500 is among them."""
    model = OpenAIErrorBody if openai else ErrorBody
    documented: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, 500}):
        documented[status] = {"model": model, "description": MEANINGS[status]}
    seconds = {"schema": {"type": "integer"}, "description": "Seconds to wait."}
    for status in {429, 503} & documented.keys():
        documented[status]["headers"] = {"Retry-After": seconds}
    return documented


def reply(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return ``content`` as JSON; NumPy arrays and scalars are written with the digits of their own dtype."""
    data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)
    return Response(data, status, headers, media_type="application/json")


def cut_header(cut: int) -> dict[str, str]:
    """Return the header that tells how many inputs, or pairs, were cut: for replies whose body has no place for it."""
    return {"x-hone-cut-inputs": str(cut)}


def error_reply(
    request: Request, status: int, message: str, detail: Any = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the one error body, or on OpenAI's route that of its clients; where files lie is for the log alone."""
    message = shortened(message)
    shown = hide_paths(message)
    if shown != message:
        request.app.state.service.telemetry.log.warning("path_hidden", status=status, reason=message)
    message = shown
    kind = ERROR_TYPES.get(status, HTTPStatus(status).phrase.lower().replace(" ", "_"))
    if request.scope["path"] == OPENAI_ROUTE:
        field = message.partition(":")[0].removeprefix("body.").partition(".")[0]
        error = {"message": message, "type": "server_error" if status >= 500 else "invalid_request_error"}
        return reply(
            {"error": {**error, "param": field if field.isidentifier() else None, "code": kind}}, status, headers
        )
    body = {"error": message, "error_type": kind, "detail": detail, "request_id": request.state.request_id}
    return reply(body, status, headers)


def register_errors(app: FastAPI) -> None:
    """Let every error of ``app`` leave in the one form."""
    app.add_exception_handler(HTTPException, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HoneError, _on_hone_error)
    for kind in (OperationalError, InterfaceError, TimeoutError):
        app.add_exception_handler(kind, _on_database_error)
    app.add_exception_handler(OSError, _on_system_error)


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_reply(request, error.status_code, error.detail, headers=error.headers)


async def _on_hone_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HoneError)
    if error.__cause__ is not None and is_full(error.__cause__):
        return await _no_room(request, error, NO_ROOM_ON_DISK)
    status = _status(error)
    if status is None:
        raise error
    seconds = error.retry_seconds if isinstance(error, SpentError) else RETRY_AFTER_SECONDS
    refusal = _later(status, str(error), seconds) if status in (429, 503) else Refusal(status, str(error))
    return await _on_refusal(request, refusal)


def _status(error: HoneError) -> int | None:
    return next((status for kind, status in STATUSES.items() if isinstance(error, kind)), None)


def shortened(text: str) -> str:
    """Return ``text``, without its middle where it repeats more of what a client sent than an error needs.

    Each path in a message is looked up on the disk; what to do stands at the end.
    """
    if len(text) <= SHOWN_CHARACTERS:
        return text
    half = SHOWN_CHARACTERS // 2
    tail = text[-half:]
    return f"{text[:half]} … {tail[tail.find(' ') + 1 :]}"  # not from the middle of a path


def told(error: HoneError) -> dict[str, Any]:
    """Return the body of ``error`` for where no status can be sent any more."""
    return {"error": hide_paths(shortened(str(error))), "error_type": ERROR_TYPES[_status(error) or 500]}


async def _on_database_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SQLAlchemyError)
    said = getattr(error, "orig", error)  # without the values of the statement
    if is_full(said):
        return await _no_room(request, said, f"{DATABASE} is full, or its disk is")
    request.app.state.service.telemetry.log.error("database_lost", reason=str(said))
    return await _on_refusal(request, not_ready(f"{DATABASE} does not answer"))


async def _on_system_error(request: Request, error: Exception) -> Response:
    if not is_full(error):
        raise error
    return await _no_room(request, error, NO_ROOM_ON_DISK)


async def _no_room(request: Request, error: BaseException | None, what: str) -> Response:
    """Answer 507, without Retry-After: time makes no room."""
    request.app.state.service.telemetry.log.error("disk_full", reason=str(error))
    return await _on_refusal(request, Refusal(507, f"{what}; make room there, then ask again"))


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    kinds = {problem["type"] for problem in problems}
    if "json_invalid" in kinds:
        return error_reply(request, 400, f"the body is not JSON: {problems[0]['ctx']['error']}")
    if not _is_json(request) and any(problem["loc"] == ("body",) for problem in problems):
        return error_reply(request, 415, "send the body as JSON with the header content-type: application/json")
    shown = [
        {"field": shortened(_field(problem["loc"])), "message": shortened(problem["msg"])}
        for problem in problems[:SHOWN_PROBLEMS]
    ]
    others = len(problems) - 1
    more = f" (and {others} more problem{'s' * (others > 1)})" if others else ""
    status = 413 if kinds & {"too_long", "string_too_long"} else 400 if NO_TEXT in kinds else 422
    return error_reply(request, status, f"{shown[0]['field']}: {shown[0]['message']}{more}", shown)


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind.endswith(("/json", "+json"))


def _field(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location)
