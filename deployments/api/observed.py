"""What an operator learns of each HTTP request: the codes of refusals, a record, a trace.

The outermost layer, so it sees what the others refuse too.
"""

import logging
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.errors import refusals
from deployments.api.middleware import local_path, request_id_for
from deployments.api.operations import ADMIN_OPERATIONS, OPERATIONS
from deployments.observe import tracing
from deployments.observe.records import log_request

if TYPE_CHECKING:
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

_METHODS = frozenset("GET HEAD POST PUT PATCH DELETE OPTIONS".split())
_OTHER = "other"  # paths and methods that are not ours, whatever a client wrote there
_PROBES = ("/healthz", "/readyz")
_LEFT = "client_left"


class Observed:
    """
    Args:
        count_refusal: called with the code of each refusal.
        is_logging: whether each request gets a record, at this moment.
    """

    def __init__(
        self,
        app: ASGIApp,
        count_refusal: Callable[[str], None] = lambda code: None,
        is_logging: Callable[[], bool] = lambda: False,
    ) -> None:
        self._app = app
        self._count_refusal = count_refusal
        self._is_logging = is_logging
        operations = {operation.path for operation in (*OPERATIONS, *ADMIN_OPERATIONS)}
        self._plain = frozenset(path for path in operations if "{" not in path)
        self._with_names = [(_pattern(path), path) for path in operations if "{" in path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        ending = _Ending(send)
        request_id, route = request_id_for(scope), self._route_of(local_path(scope))
        # The layers below, and what they refuse with, have the same id.
        scope = {**scope, "state": {**scope.get("state", {}), "request_id": request_id}}
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        span = self._begin(scope, request_id, method, route)
        codes: list[str] = []
        marked = refusals.set(codes)
        try:
            with tracing.current(span):
                await self._app(scope, receive, ending)
        finally:
            refusals.reset(marked)
            for code in codes:
                self._count_refusal(code)
            error = codes[-1] if codes else ending.error
            _end(span, ending.status, error)
            if self._is_logging():
                fields = {"method": method, "path": route, "status": ending.status, "error": error}
                seconds = round(time.monotonic() - ending.began_at, 4)
                log_request(logger, request_id, "http_request", **fields, seconds=seconds)

    def _begin(self, scope: Scope, request_id: str, method: str, route: str) -> "Span | None":
        if not tracing.is_on() or route in _PROBES:
            return None
        headers = Headers(scope=scope)
        names = ("traceparent", "tracestate")
        return tracing.begin(
            f"{method} {route}",
            {name: headers[name] for name in names if name in headers},
            is_server=True,
            attributes={
                "http.request.method": method,
                "http.route": route,
                "polyclinic.request_id": request_id,
            },
        )

    def _route_of(self, path: str) -> str:
        if path in self._plain:
            return path
        return next((route for found, route in self._with_names if found.match(path)), _OTHER)


class _Ending:
    """Passes the response on, and notes its status and whether it was complete."""

    def __init__(self, send: Send) -> None:
        self.status: int | None = None
        self.began_at = time.monotonic()
        self._send = send
        self._is_complete = False

    async def __call__(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self._is_complete = not message.get("more_body", False)

    @property
    def error(self) -> str | None:
        """A stream's failure is the answer's; here it is that nobody read it to its end."""
        return None if self._is_complete else _LEFT


def _end(span: "Span | None", status: int | None, error: str | None) -> None:
    """End the span of a request; what the client did wrong is no error of the server's."""
    attributes = {"http.response.status_code": status, "error.type": error}
    is_ours = status is None or status >= 500 or error == _LEFT
    tracing.end(span, error if is_ours else None, attributes=attributes)


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile("^" + re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)) + "$")
