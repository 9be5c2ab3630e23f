"""HTTP in, HTTP out: reading a body within its limit, and turning every failure into a reply."""

import logging
import re
import traceback
import uuid
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deployments.engine.request import ErrorInfo
from deployments.schema import ApiError

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
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def guarded(endpoint: Endpoint) -> Endpoint:
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
            return refuse(request, internal_error())

    return call


def log_unexpected(error: Exception, where: str) -> None:
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("unexpected %s on %s\n%s", type(error).__name__, where, frames)


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


def request_id_of(request: Request) -> str:
    """The client's x-request-id, or a new one."""
    return _id_in(request, "x-request-id") or uuid.uuid4().hex


def session_id_of(request: Request) -> str | None:
    """The client's x-session-id: one session gets one version of an adapter that is on trial."""
    return _id_in(request, "x-session-id")


def _id_in(request: Request, header: str) -> str | None:
    given = request.headers.get(header)
    if given is not None and not _REQUEST_ID.fullmatch(given):
        raise ApiError(
            400,
            "invalid_value",
            f"{header}: {ascii(given[:60])}: 1 to 128 letters, digits, '.', '_' or '-'",
            param=header,
        )
    return given


def engine_error(error: ErrorInfo) -> ApiError:
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    status = _STATUS_OF_ENGINE_ERROR.get(error.code, 500)
    return ApiError(status, error.code, error.message, param=error.param, headers=headers)


def internal_error() -> ApiError:
    return ApiError(500, "internal_error", "internal error; the server's log names the cause")


def refuse(request: Request, error: ApiError) -> Response:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


def http_error(paths: list[str]) -> Callable[[Request, HTTPException], Response]:
    def handle(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 404:
            message = f"no such path: {ascii(request.url.path[:80])}; there are {', '.join(paths)}"
            return refuse(request, ApiError(404, "path_not_found", message))
        if error.status_code == 405:
            message = f"{request.method} is not allowed here: use {headers.get('Allow', 'POST')}"
            refusal = ApiError(405, "method_not_allowed", message, headers=headers)
            return refuse(request, refusal)
        return refuse(request, ApiError(error.status_code, "http_error", str(error.detail)))

    return handle
