"""What every request passes: limits on its size and time, an id, headers for browsers. Pure ASGI.

Ray's proxy limits nothing: its uvicorn accepts headers of any size and passes a request on as soon
as its headers are complete, so a client that never finishes its body would occupy one of the
replica's requests until it leaves. WebSockets are closed.
"""

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.errors import (
    ApiError,
    Endpoint,
    bad_id,
    error_response,
    internal_error,
    log_unexpected,
)
from deployments.api.protocol.base import is_id
from deployments.live_settings import AccessLimits

PAGE_PATHS = ("", "/")
STATIC = "/static"  # what the page loads

_EVERYWHERE = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
# The page may load its own scripts and styles; the API's replies load nothing.
_PAGE = (
    b"content-security-policy",
    b"default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    b"object-src 'none'",
)
_API = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_NOT_STORED = (b"cache-control", b"no-store")
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024  # all names and values together
MAX_TARGET_BYTES = 8 * 1024  # path and query string
_POLICY_VIOLATION = 1008  # of RFC 6455, section 7.4.1
# Without it the rest of the request would be read as the next one.
_CLOSE = {"connection": "close"}


class RequestIds:
    """Give every request an id, the client's x-request-id or a new one, and every response the
    header with it, errors included. A header of another shape is no id of ours: load balancers and
    other services have their own, so the request gets a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_for(scope)
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class ResponseHeaders:
    """Tell the browser: no guessed types, no framing, no foreign content, nothing stored. What the
    application has set itself stays.

    Args:
        proxy_adds_id: Ray Serve's HTTP server appends x-request-id to every response itself, so
            ours is removed and the header is there once.
    """

    def __init__(self, app: ASGIApp, *, proxy_adds_id: bool = False) -> None:
        self._app = app
        self._proxy_adds_id = proxy_adds_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = local_path(scope)
        is_page = path in PAGE_PATHS or is_under(path, (STATIC,))
        wanted = (*_EVERYWHERE, _PAGE) if is_page else (*_EVERYWHERE, _API, _NOT_STORED)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                if self._proxy_adds_id:
                    del headers["x-request-id"]
                present = {name.lower() for name, _ in headers.raw}
                added = [header for header in wanted if header[0] not in present]
                message = {**message, "headers": headers.raw + added}
            await send(message)

        await self._app(scope, receive, send_with_headers)


async def refuse(
    error: ApiError,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Answer with `error` before the application is reached, with the request's id."""
    response = error_response(error)
    response.headers["x-request-id"] = request_id_for(scope)
    response.raw_headers += list(headers)
    await response(scope, receive, send)


def request_id_for(scope: Scope) -> str:
    """Return the id that a layer before has given it; else the client's x-request-id, or a new id
    where it sent none, several, or not an id."""
    known: str | None = scope.get("state", {}).get("request_id")
    if known is not None:
        return known
    given = Headers(scope=scope).getlist("x-request-id")
    return given[0] if len(set(given)) == 1 and is_id(given[0]) else uuid.uuid4().hex


def request_id_of(request: Request) -> str:
    """Return the id that RequestIds gave this request."""
    request_id: str = request.state.request_id
    return request_id


def session_id_of(request: Request, in_body: str | None = None) -> str | None:
    """Return the client's name for a conversation, from its body or its x-session-id: one session
    gets one version of an adapter that is on trial.

    Raises:
        ApiError: the header is not an id, or is another one than the body's.
    """
    given = request.headers.get("x-session-id")
    if given is None:
        return in_body
    if not is_id(given):
        raise bad_id("x-session-id", given)
    if in_body not in (None, given):
        raise ApiError(
            400,
            "conflicting_fields",
            f"x-session-id is '{given}' and session_id is '{in_body}': send one of them",
            param="session_id",
        )
    return given


def tenant_of(request: Request) -> str | None:
    """Return what tells one key's requests from another's, for GenerateRequest, without naming the
    key; None where keys are off."""
    caller = request.scope.get("state", {}).get("caller")
    return None if caller is None else hashlib.sha256(caller.key_id.encode()).hexdigest()[:32]


def local_path(scope: MutableMapping[str, Any]) -> str:
    """Return the path below the prefix that Serve mounts us at, as Starlette's routing sees it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path


def is_under(path: str, prefixes: Iterable[str]) -> bool:
    """Whether `path` is one of these, or below one of them."""
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in prefixes)


class RequestLimits:
    """Refuse with 400, 414 and 431, and with 408 when the body takes longer than body_timeout_s.

    The 408 is raised where the application reads the body, and answered there as any ApiError.
    """

    def __init__(self, app: ASGIApp, live: Callable[[], AccessLimits]) -> None:
        self._app = app
        self._live = live

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
        await self._app(scope, _TimedBody(receive, self._live().body_timeout_s), send)


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


def catch_unexpected(endpoint: Endpoint) -> Endpoint:
    """Wrap an endpoint: an unexpected failure is a 500, logged without the exception's text.

    The text of an exception may quote a question, so the log gets its type and its place.
    """

    async def call(request: Request) -> Response:
        try:
            return await endpoint(request)
        except (ApiError, HTTPException):
            raise
        except Exception as error:
            log_unexpected(error, request.url.path)
            return error_response(internal_error())

    return call
