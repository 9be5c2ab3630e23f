"""Comment lines in a stream of server-sent events, which clients skip.

A proxy that ends silent connections does not end a long wait, since something is sent.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.types import Send

COMMENT_EVERY_S = 15.0
_COMMENT = ": waiting\n\n"


@asynccontextmanager
async def commented(send: Send) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """Give a function that sends an event; while nothing is sent for COMMENT_EVERY_S, a comment is.

    One task for the whole stream waits; an event costs no task and no timer.
    """
    clock = asyncio.get_running_loop().time
    sent_at = clock()  # inf: an event is on its way

    async def send_event(text: str) -> None:
        nonlocal sent_at
        sent_at = math.inf
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        sent_at = clock()

    async def comment() -> None:
        while True:
            silent_s = max(0.0, clock() - sent_at)
            if silent_s >= COMMENT_EVERY_S:
                await send_event(_COMMENT)
                silent_s = 0.0
            await asyncio.sleep(COMMENT_EVERY_S - silent_s)

    comments = asyncio.create_task(comment())
    try:
        yield send_event
    finally:
        comments.cancel()
        await asyncio.gather(comments, return_exceptions=True)
