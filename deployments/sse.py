"""Server-sent events: their text, and a response that gives back what it holds however it ends."""

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from deployments.schema import ApiError

logger = logging.getLogger(__name__)

DONE = "data: [DONE]\n\n"  # how OpenAI ends a stream


def sse(value: Mapping[str, Any], event: str | None = None) -> str:
    """One event; `event` is its name, where it has one."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(value, ensure_ascii=False)}\n\n"


def error_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """A failure in mid-stream: the status is sent already, so the body carries the request's id."""
    return {"error": {**error.body()["error"], "request_id": request_id}}


class EventStream(StreamingResponse):
    """Args:
    close: called once when the response is over: sent whole, broken off, or never begun.
    """

    def __init__(
        self, body: AsyncGenerator[str, None], *, close: Callable[[], Awaitable[None]]
    ) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(body, media_type="text/event-stream", headers=headers)
        self._body = body
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._body.aclose()
            await self._close()

    async def listen_for_disconnect(self, receive: Receive) -> None:
        """Ends when the client has left. Ray's `receive` says so by raising that its task was
        cancelled, which would fill the log with a traceback for each client that leaves."""
        try:
            await super().listen_for_disconnect(receive)
        except Exception as error:
            logger.debug("a stream's client has left: %s", type(error).__name__)
