"""What Serve's HTTP proxy says for itself, in the shape of our errors.

When a router replica dies, the proxy sends nothing more: a reply that has not begun would be a
plain 500 of the HTTP server, and a stream would end without its last event. Here the first is asked
once more, since a question changes nothing, and is a 503 `router_lost` if it is lost again or
changes something; the second gets its error event, which says so where it was Serve's own time
limit that ended the stream. A question that routers die of reaches three of them at most
(router_deaths.py). Serve's own refusals are plain text, and get our shape.
"""

import asyncio
import contextlib
import json
import math
import re
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.errors import ApiError, error_response
from deployments.api.middleware import RequestIds, ResponseHeaders, request_id_for
from deployments.ingress.router_deaths import SUSPECT, OthersFirst, RouterDeaths

_SERVES_OWN = "/-/"  # its health and routes
_RETRY_S = {"retry-after": "1"}
_LOST = (
    "router_lost",
    "the router replica that had this request has ended: try again, unless it changes something",
)
_KEPT_AWAY = (
    "question_quarantined",
    "three router replicas were lost while they had this very question, so it is kept from the "
    "others for a while: change it, or ask again later",
)
_OTHERS_FIRST = (
    "router_lost",
    "router replicas were lost while they had this question, and it is asked again only alone: "
    "others are before it, try again",
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
_BODY_S = 15.0  # until it is there, as long as a router waits
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
        self._deaths = RouterDeaths()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_SERVES_OWN):
            await self._app(scope, receive, send)
            return
        body, reply = _Body(receive), _Reply(send)
        if _is_question(scope):
            error = await self._ask_question(scope, body, reply) or reply.error()
        else:
            await self._ask(scope, body, reply, may_repeat=scope["method"] in _READING)
            error = reply.error()
        if error is not None:
            app = ResponseHeaders(RequestIds(error_response(error)))
            await app(scope, receive, send)
        elif reply.is_cut_stream:
            is_late = reply.is_late(self._timeout_s)
            error = ApiError(*_TIMED_OUT) if is_late else ApiError(503, *_LOST)
            await send({"type": "http.response.body", "body": reply.last_event(scope, error)})

    async def _ask(self, scope: Scope, body: "_Body", reply: "_Reply", *, may_repeat: bool) -> int:
        """Ask a router, and one more if nothing came back. Returns how many were lost."""
        began = reply.began = time.monotonic()
        await self._app(dict(scope), body.receive, reply.pass_on)
        is_early = time.monotonic() - began < _REPEAT_WITHIN_S
        may_repeat = may_repeat and body.is_whole and is_early and self._deaths.may_repeat
        if reply.has_begun or not may_repeat:
            return int(reply.is_lost(self._timeout_s))
        body.rewind()
        reply.began = time.monotonic()
        await self._app(dict(scope), body.receive, reply.pass_on)
        if not reply.is_lost(self._timeout_s):
            return 1
        self._deaths.saw_repeat_lost()
        return 2

    async def _ask_question(self, scope: Scope, body: "_Body", reply: "_Reply") -> ApiError | None:
        """Do `_ask` as far as the question's earlier deaths allow it, and note those of now.

        Returns why it was not asked, if so.
        """
        deaths, question = self._deaths, None
        if deaths.are_known:
            question = deaths.digest(scope["path"], await body.read_ahead())
        try:
            async with deaths.turn(question):
                if wait_s := deaths.seconds_left(question):
                    headers = {"retry-after": str(math.ceil(wait_s))}
                    return ApiError(503, *_KEPT_AWAY, headers=headers)
                before = deaths.count(question)
                lost = await self._ask(scope, body, reply, may_repeat=before < SUSPECT)
                if reply.has_ended:
                    deaths.saw_answer(question)
                elif lost and body.is_whole:
                    question = question or deaths.digest(scope["path"], body.kept)
                    deaths.saw(question, before + lost)
        except OthersFirst:
            return ApiError(503, *_OTHERS_FIRST, headers=_RETRY_S)
        return None


def _timeout_of(app: Any) -> float | None:
    """Return the seconds after which Serve's proxy ends a reply; None: never, or not to be found.

    Serve tells it nobody, so it is looked for in the proxy, through what is wrapped around it.
    """
    while app is not None and not hasattr(app, "request_timeout_s"):
        app = getattr(app, "app", None)
    found = getattr(app, "request_timeout_s", None)
    return found if isinstance(found, int | float) else None


def _is_question(scope: Scope) -> bool:
    return scope["method"] not in _READING and scope["path"].endswith(_QUESTIONS)


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

    @property
    def kept(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self._kept)

    async def read_ahead(self) -> bytes:
        """Return the body, or the beginning of one that is too long, or that does not come."""
        read: list[Message] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BODY_S):
                while not self.is_whole and self._num_bytes <= _MOST_KEPT:
                    read.append(await self.receive())
                    if read[-1]["type"] != "http.request":
                        break
        self._ahead = read
        return self.kept


class _Reply:
    """Passes a reply on, but for Serve's own refusals, and knows how far it came.

    began: when a router was asked for it, seconds, monotonic.
    """

    def __init__(self, send: Send) -> None:
        self.began = 0.0
        self.has_ended = False
        self._send = send
        self._start: Message | None = None
        self._status = 0  # of a refusal of Serve's
        self._is_stream = False
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
            self.has_ended = not message.get("more_body", False)
            self._latest = message.get("body") or self._latest
        if not self._status:
            await self._send(message)

    def is_late(self, timeout_s: float | None) -> bool:
        """Return whether it has taken as long as Serve lets a reply take."""
        return timeout_s is not None and time.monotonic() - self.began >= timeout_s

    def is_lost(self, timeout_s: float | None) -> bool:
        """Return whether its router has ended, now that nothing more comes."""
        is_cut = self.is_cut_stream and not self.is_late(timeout_s)
        return is_cut or self._is_lost_before

    @property
    def _is_lost_before(self) -> bool:
        """Return whether its router has ended before it had said anything."""
        is_an_error = self._status >= 500 and self._status not in _REFUSALS
        return self._start is None or is_an_error

    def error(self) -> ApiError | None:
        """Return what to answer in place of the reply; None if it has begun."""
        if self._is_lost_before:
            return ApiError(503, *_LOST, headers=_RETRY_S)
        if not self._status:
            return None
        unknown = (self._status, "http_error", "the server's proxy refused the request")
        status, code, message = _REFUSALS.get(self._status, unknown)
        return ApiError(status, code, message, headers=_RETRY_S if status == 503 else {})

    @property
    def is_cut_stream(self) -> bool:
        return self._is_stream and not self.has_ended

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
