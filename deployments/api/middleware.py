"""What every request and response gets: an id, and the headers that a browser obeys. Pure ASGI."""

import uuid
from collections.abc import Iterable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.errors import ApiError, bad_id, error_response
from deployments.api.protocol.base import is_id

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


class RequestIds:
    """Give every request an id, the client's x-request-id or a new one, and every response the
    header with it, errors included. A header that is not an id is refused."""

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

        given = Headers(scope=scope).get("x-request-id", request_id)
        if given == request_id:
            await self._app(scope, receive, send_with_id)
        else:
            refusal = error_response(bad_id("x-request-id", given))
            await refusal(scope, receive, send_with_id)


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
    """Return the client's x-request-id, or a new id where it sent none, or not an id."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if is_id(given) else uuid.uuid4().hex


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
