"""What Serve's HTTP proxy says for itself, in the shape of our errors.

When a router replica dies, the proxy sends nothing more: a reply that has not begun would be a
plain 500 of the HTTP server, and a stream would end without its last event. Here the first is asked
once more, since a question changes nothing, and is a 503 `router_lost` if it is lost again or
changes something; the second gets its error event, which says so where it was Serve's own time
limit that ended the stream. Serve's own refusals are plain text, and get our shape.
"""

import json
import re
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.errors import ApiError, error_response
from deployments.api.middleware import RequestIds, ResponseHeaders, request_id_for

_SERVES_OWN = "/-/"  # its health and routes
_RETRY_S = {"retry-after": "1"}
_LOST = (
    "router_lost",
    "the router replica that had this request has ended: try again, unless it changes something",
)
_TIMED_OUT = (
    408,
    "deadline_exceeded",
    "the answer was not complete within request_timeout_s of http_options",
)
# Serve's status -> ours, where it has no replica to ask, or gave up waiting for one.
_REFUSALS = {
    404: (404, "path_not_found", "no application serves this path (yet)"),
    408: (*_TIMED_OUT[:2], "there was no reply within request_timeout_s of http_options"),
    429: (503, "overloaded", "the router replicas have no room for more requests"),
    503: (503, "no_router_replica", "no router replica is running: they are being started"),
}
# A request that may be sent twice: all that only reads, and these.
_READING = ("GET", "HEAD", "OPTIONS")
_QUESTIONS = ("/ask", "/route", "/v1/chat/completions", "/v1/completions", "/v1/responses")
# Its deadline begins again with the second router, so nobody is to wait much longer than he asked.
_REPEAT_WITHIN_S = 10.0
_MOST_KEPT = 256 * 1024  # bytes of a body, as many as a router accepts
_LAST_EVENT = re.compile(
    rb'^(event: (done|error|response\.completed|response\.incomplete)|data: (\[DONE\]|{"error"))',
    re.MULTILINE,
)
_NUMBER = re.compile(rb'"sequence_number": (\d+)')


class OwnErrors:
    """Middleware for Serve's proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._timeout_s = _timeout_of(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_SERVES_OWN):
            await self._app(scope, receive, send)
            return
        body, reply, began = _Body(receive), _Reply(send), time.monotonic()
        await self._app(dict(scope), body.receive, reply.pass_on)
        is_early = time.monotonic() - began < _REPEAT_WITHIN_S
        if not reply.has_begun and _may_repeat(scope) and body.is_whole and is_early:
            body.rewind()
            began = time.monotonic()
            await self._app(dict(scope), body.receive, reply.pass_on)
        error = reply.error()
        if error is not None:
            app = ResponseHeaders(RequestIds(error_response(error)))
            await app(scope, receive, send)
        elif reply.is_cut_stream:
            took_s = time.monotonic() - began
            is_late = self._timeout_s is not None and took_s >= self._timeout_s
            error = ApiError(*_TIMED_OUT) if is_late else ApiError(503, *_LOST)
            await send({"type": "http.response.body", "body": reply.last_event(scope, error)})


def _timeout_of(app: Any) -> float | None:
    """Return the seconds after which Serve's proxy ends a reply; None: never, or not to be found.

    Serve tells it nobody, so it is looked for in the proxy, through what is wrapped around it.
    """
    while app is not None and not hasattr(app, "request_timeout_s"):
        app = getattr(app, "app", None)
    found = getattr(app, "request_timeout_s", None)
    return found if isinstance(found, int | float) else None


def _may_repeat(scope: Scope) -> bool:
    return scope["method"] in _READING or scope["path"].endswith(_QUESTIONS)


class _Body:
    """Hands a request's body on, and keeps it for a second time."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[Message] = []
        self._ahead: list[Message] = []
        self._num_bytes = 0
        self.is_whole = False  # the client has sent all, is there, and it was not too much

    async def receive(self) -> Message:
        if self._ahead:
            return self._ahead.pop(0)
        message = await self._receive()
        if message["type"] != "http.request":
            self.is_whole = False
        elif self._num_bytes <= _MOST_KEPT:
            self._num_bytes += len(message.get("body", b""))
            self._kept.append(message)
            self.is_whole = not message.get("more_body") and self._num_bytes <= _MOST_KEPT
        return message

    def rewind(self) -> None:
        self._ahead = list(self._kept)


class _Reply:
    """Passes a reply on, but for Serve's own refusals, and knows how far it came."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._status = 0  # of a refusal of Serve's
        self._is_stream = self._has_ended = False
        self._latest = b""

    @property
    def has_begun(self) -> bool:
        return self._start is not None

    async def pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            kind = dict(message.get("headers", ())).get(b"content-type", b"")
            self._is_stream = kind.startswith(b"text/event-stream")
            if message["status"] >= 400 and kind.startswith(b"text/plain"):
                self._status = message["status"]
        elif message["type"] == "http.response.body":
            self._has_ended = not message.get("more_body", False)
            self._latest = message.get("body") or self._latest
        if not self._status:
            await self._send(message)

    def error(self) -> ApiError | None:
        """Return what to answer in place of the reply; None if it has begun."""
        if self._start is None or self._status >= 500 and self._status not in _REFUSALS:
            return ApiError(503, *_LOST, headers=_RETRY_S)
        if not self._status:
            return None
        unknown = (self._status, "http_error", "the server's proxy refused the request")
        status, code, message = _REFUSALS.get(self._status, unknown)
        return ApiError(status, code, message, headers=_RETRY_S if status == 503 else {})

    @property
    def is_cut_stream(self) -> bool:
        return self._is_stream and not self._has_ended

    def last_event(self, scope: Scope, error: ApiError) -> bytes:
        """Return what a stream lacks: its last event, if that had not come."""
        if _LAST_EVENT.search(self._latest):
            return b""
        detail = error.reply(request_id=request_id_for(scope)).model_dump()
        path, data = scope["path"], {"error": detail}
        if path.endswith("/responses"):
            data |= _of_the_responses_api(detail, self._latest)
        name = "" if path.endswith("/completions") else "event: error\n"
        return f"{name}data: {json.dumps(data)}\n\n".encode()


def _of_the_responses_api(detail: dict[str, Any], latest: bytes) -> dict[str, Any]:
    numbers = _NUMBER.findall(latest)
    number = int(numbers[-1]) + 1 if numbers else 0
    given = {name: detail[name] for name in ("code", "message", "param")}
    return {"type": "error", "sequence_number": number, **given}
