"""A refusal sent from before the application: OpenAI's error shape, with the request's id."""

import re
import uuid
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from deployments.api.protocol import ApiError

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

RawHeaders = Iterable[tuple[bytes, bytes]]


async def error_response(
    error: ApiError, scope: Scope, receive: Receive, send: Send, headers: RawHeaders = ()
) -> None:
    """Generation with `error`. The client's x-request-id goes back if it is one, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    response = JSONResponse(
        error.body(), error.status, headers={**error.headers, "x-request-id": request_id}
    )
    response.raw_headers += list(headers)
    await response(scope, receive, send)
