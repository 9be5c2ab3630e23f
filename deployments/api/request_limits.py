"""Limits on the size and the time of a request, before it is parsed; WebSockets are closed.

Ray's proxy limits none of this: its uvicorn accepts headers of any size and passes a request on as
soon as its headers are complete, so a client that never finishes its body would occupy one of the
replica's requests until it leaves.
"""

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.errors import ApiError
from deployments.api.middleware import refuse

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024  # all names and values together
MAX_TARGET_BYTES = 8 * 1024  # path and query string
_POLICY_VIOLATION = 1008  # of RFC 6455, section 7.4.1
# Without it the rest of the request would be read as the next one.
_CLOSE = {"connection": "close"}


class RequestLimits:
    """Refuse with 400, 414 and 431, and with 408 when the body takes longer than body_timeout_s().

    The 408 is raised where the application reads the body, and answered there as any ApiError.
    """

    def __init__(self, app: ASGIApp, body_timeout_s: Callable[[], float]) -> None:
        self._app = app
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = _refusal(scope)
        if error:
            await refuse(error, scope, receive, send)
            return
        await self._app(scope, _TimedBody(receive, self._body_timeout_s()), send)


class _TimedBody:
    """Receive with a deadline for the whole body; a disconnect may be awaited without a limit.

    Raises:
        ApiError: 408, from the call that would have waited past the deadline; 400 where the client
            left before its body was complete (nobody reads the reply, but no fault is logged).
    """

    def __init__(self, receive: Receive, timeout_s: float) -> None:
        self._receive = receive
        self._timeout_s = timeout_s
        self._deadline: float | None = None
        self._is_complete = False

    async def __call__(self) -> Message:
        if self._is_complete:
            return await self._receive()
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self._is_complete = True
            text = f"the body was not complete within {self._timeout_s:g} s: send it at once"
            raise ApiError(408, "body_timeout", text, headers=_CLOSE) from None
        self._is_complete = not message.get("more_body", False)
        if message["type"] == "http.disconnect":
            raise ApiError(400, "client_left", "the connection ended before the body did")
        return message


def _refusal(scope: Scope) -> ApiError | None:
    query = scope.get("query_string", b"")
    if not query.isascii():  # Starlette would fail on it where it builds the URL
        message = "the query string holds bytes that are not ASCII: percent-encode them"
        return ApiError(400, "invalid_value", message, param="query")
    num_bytes = len(scope.get("raw_path") or scope["path"].encode()) + len(query)
    if num_bytes > MAX_TARGET_BYTES:
        message = f"path and query are {num_bytes} bytes; at most {MAX_TARGET_BYTES} are accepted"
        detail = {"limit": MAX_TARGET_BYTES}
        return ApiError(414, "uri_too_long", message, detail=detail, headers=_CLOSE)
    headers = scope["headers"]
    num_header_bytes = sum(len(name) + len(value) for name, value in headers)
    if len(headers) <= MAX_HEADERS and num_header_bytes <= MAX_HEADER_BYTES:
        return None
    message = (
        f"{len(headers)} headers of {num_header_bytes} bytes; at most {MAX_HEADERS} of "
        f"{MAX_HEADER_BYTES} bytes are accepted"
    )
    detail = {"limit": MAX_HEADER_BYTES, "limit_count": MAX_HEADERS}
    return ApiError(431, "headers_too_large", message, detail=detail, headers=_CLOSE)
