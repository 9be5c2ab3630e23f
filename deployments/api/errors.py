"""What every refusal and failure looks like to a client: code, status, body.

Domain errors become HTTP statuses here (and, for adapters, in admin.py), and nowhere else.
"""

import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from deployments.api.protocol.base import ErrorDetail, ErrorReply, json_response
from deployments.engine.request import ErrorInfo

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]
# The codes that the current request was refused with, for observed.py, which sets it.
refusals: ContextVar[list[str] | None] = ContextVar("refusals", default=None)

# Code of an ErrorInfo -> status. The engine's (deployments/engine/errors.py draws their tree):
STATUS = {
    "refused": 400,
    "empty_prompt": 400,
    "prompt_too_long": 400,
    "output_too_long": 400,
    "too_many_scores": 400,
    "not_for_this_model": 400,
    "invalid_token_id": 400,
    "invalid_schema": 400,
    "structure_failed": 400,
    "queue_full": 503,
    "unknown_adapter": 503,
    "engine_stopped": 503,
    "engine_error": 500,
    "decoder_failed": 500,
    # Raised where an adapter is loaded or a decoder is built, before there is a request:
    "adapter_bank_refused": 500,
    "adapter_has_no_effect": 500,
    "adapter_not_supported": 500,
    "fast_decoder_impossible": 500,
    # A model replica's, and the router's of a replica that it cannot reach:
    "adapter_gone": 503,
    "adapter_unavailable": 503,
    "replica_lost": 503,
    "no_model_replica": 503,
    "other_config": 503,
    "question_quarantined": 503,
}


class ApiError(Exception):
    """A refusal, in OpenAI's error shape.

    `code` is stable and meant for programs, `param` names the field, `detail` holds what a client
    may want to read without parsing the message (limit, choices).
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        detail: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.detail = dict(detail or {})
        self.headers = dict(headers or {})

    def reply(self, **more: Any) -> ErrorDetail:
        """Build the `error` of a body; `more` is added to its fields."""
        return ErrorDetail(
            message=self.message,
            type="invalid_request_error" if self.status < 500 else "server_error",
            param=self.param,
            code=self.code,
            **self.detail,
            **more,
        )


def engine_error(error: ErrorInfo) -> ApiError:
    """Return the ApiError of an engine's error. A code that is not in STATUS is a 500."""
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    status = STATUS.get(error.code, 500)
    return ApiError(status, error.code, error.message, param=error.param, headers=headers)


def internal_error() -> ApiError:
    return ApiError(500, "internal_error", "internal error; the server's log names the cause")


def invalid(param: str, message: str, *, code: str = "invalid_value", **detail: Any) -> ApiError:
    """Return a 400 that names its field before the message."""
    return ApiError(400, code, f"{param}: {message}", param=param, detail=detail)


def bad_id(header: str, given: str) -> ApiError:
    """Return the refusal of an id that does not match ID_PATTERN."""
    return invalid(header, f"{ascii(given[:60])}: 1 to 128 letters, digits, '.', '_' or '-'")


def error_response(error: ApiError) -> Response:
    codes = refusals.get()
    if codes is not None:
        codes.append(error.code)
    return json_response(ErrorReply(error=error.reply()), error.status, error.headers)


def on_http_error(paths: list[str]) -> Callable[[Request, HTTPException], Response]:
    """Return the handler of Starlette's refusals. `paths`: those of the API, for the 404."""

    def handle(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 404:
            message = f"no such path: {ascii(request.url.path[:80])}; there are {', '.join(paths)}"
            return error_response(ApiError(404, "path_not_found", message))
        if error.status_code == 405:
            message = f"{request.method} is not allowed here: use {headers.get('Allow', 'POST')}"
            return error_response(ApiError(405, "method_not_allowed", message, headers=headers))
        return error_response(ApiError(error.status_code, "http_error", str(error.detail)))

    return handle


def log_unexpected(error: Exception, where: str) -> None:
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("unexpected %s on %s\n%s", type(error).__name__, where, frames)
