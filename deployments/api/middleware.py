"""HTTP in, HTTP out: reading a body within its limit, and turning every failure into a reply."""

import logging
import re
import traceback
import uuid
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.errors import RequestT, parse_json, parse_request
from deployments.api.protocol import ApiError
from deployments.engine.request import ErrorInfo

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]

_STATUS_OF_ENGINE_ERROR = {
    "prompt_too_long": 400,
    "output_too_long": 400,
    "queue_full": 503,
    "adapter_gone": 503,
    "adapter_unavailable": 503,
    "unknown_adapter": 503,
    "engine_stopped": 503,
    "replica_lost": 503,
    "no_replica": 503,
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def catch_unexpected(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose unexpected failure is a 500, logged without the exception's text.

    The text of an exception may quote a question, so the log gets its type and its place.
    """

    async def call(request: Request) -> Response:
        try:
            return await endpoint(request)
        except (ApiError, HTTPException):
            raise
        except Exception as error:
            log_unexpected(error, request.url.path)
            return error_response(request, internal_error())

    return call


def log_unexpected(error: Exception, where: str) -> None:
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("unexpected %s on %s\n%s", type(error).__name__, where, frames)


async def read_request(
    request: Request, model: type[RequestT], max_bytes: int, *, may_be_empty: bool = False
) -> RequestT:
    """The body as `model`; raises ApiError: 415, 413, or 400 naming every bad field.

    Args:
        may_be_empty: a request without a body stands for one without fields.
    """
    length = request.headers.get("content-length", "0")
    if may_be_empty and length == "0" and "transfer-encoding" not in request.headers:
        return parse_request(model, {})
    content_type = request.headers.get("content-type", "")
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise ApiError(
            415,
            "unsupported_media_type",
            f"Content-Type is {ascii(content_type[:60])}: send application/json",
            param="content-type",
        )
    return parse_request(model, parse_json(await read_body(request, max_bytes)))


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, refused with a 413 as soon as it is known to be too large."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(int(declared), max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(len(body), max_bytes)
    return bytes(body)


def _too_large(num_bytes: int, limit: int) -> ApiError:
    return ApiError(
        413,
        "body_too_large",
        f"the body is {num_bytes} bytes or more; at most {limit} are accepted",
        detail={"limit": limit},
    )


class RequestIds:
    """Gives every request an id, the client's x-request-id or a new one, and every response the
    header with it, errors included. An id that is none is refused."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id")
        is_good = given is not None and _REQUEST_ID.fullmatch(given)
        request_id = given if given is not None and is_good else uuid.uuid4().hex
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        if given is not None and not is_good:
            response = error_response(Request(scope), _bad_id("x-request-id", given))
            await response(scope, receive, send_with_id)
        else:
            await self._app(scope, receive, send_with_id)


class IdFromProxy:
    """Outermost under Ray Serve, whose HTTP server appends x-request-id to every response itself:
    takes ours away, so that it is there once."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await self._app(scope, receive, send_without_id)


def request_id_of(request: Request) -> str:
    """The id that RequestIds gave this request."""
    request_id: str = request.state.request_id
    return request_id


def session_id_of(request: Request, in_body: str | None = None) -> str | None:
    """The client's name for a conversation, from its body or its x-session-id: one session gets
    one version of an adapter that is on trial.

    Raises ApiError: the header is no id, or another one than the body's.
    """
    given = request.headers.get("x-session-id")
    if given is None:
        return in_body
    if not _REQUEST_ID.fullmatch(given):
        raise _bad_id("x-session-id", given)
    if in_body not in (None, given):
        raise ApiError(
            400,
            "conflicting_fields",
            f"x-session-id is '{given}' and session_id is '{in_body}': send one of them",
            param="session_id",
        )
    return given


def _bad_id(header: str, given: str) -> ApiError:
    return ApiError(
        400,
        "invalid_value",
        f"{header}: {ascii(given[:60])}: 1 to 128 letters, digits, '.', '_' or '-'",
        param=header,
    )


def charge(request: Request, num_tokens: int) -> None:
    """Tell whoever counts this caller's tokens (the front door, when keys are on) what an answer
    took: prompt and generated tokens. Nothing is charged for nothing."""
    caller = request.scope["state"].get("caller")
    if caller is not None and num_tokens:
        caller.charge(num_tokens)


def engine_error(error: ErrorInfo) -> ApiError:
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    status = _STATUS_OF_ENGINE_ERROR.get(error.code, 500)
    return ApiError(status, error.code, error.message, param=error.param, headers=headers)


def internal_error() -> ApiError:
    return ApiError(500, "internal_error", "internal error; the server's log names the cause")


def error_response(request: Request, error: ApiError) -> Response:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


def http_error(paths: list[str]) -> Callable[[Request, HTTPException], Response]:
    def handle(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 404:
            message = f"no such path: {ascii(request.url.path[:80])}; there are {', '.join(paths)}"
            return error_response(request, ApiError(404, "path_not_found", message))
        if error.status_code == 405:
            message = f"{request.method} is not allowed here: use {headers.get('Allow', 'POST')}"
            refusal = ApiError(405, "method_not_allowed", message, headers=headers)
            return error_response(request, refusal)
        return error_response(request, ApiError(error.status_code, "http_error", str(error.detail)))

    return handle
