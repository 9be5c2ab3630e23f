"""Answers that are generated side by side, as one stream of pieces.

A refusal gets its own HTTP status as long as no answer has begun; after that a failure is a piece.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass

from deployments.answering import Answer, failure_of
from deployments.engine.request import TokenEvent
from deployments.http_io import internal_error, log_unexpected
from deployments.schema import ApiError


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of answer number `opinion`. Its last piece has the terminal `event`, or the `failure`
    that ended it."""

    opinion: int
    text: str = ""
    event: TokenEvent | None = None
    failure: ApiError | None = None

    @property
    def is_last(self) -> bool:
        return self.event is not None or self.failure is not None


class AnswerStream:
    """`await begin()`, iterate once, and `await close()` however it ended."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._pieces = _side_by_side(answers) if len(answers) > 1 else _pieces(0, answers[0])
        self._early: list[Piece] = []

    async def begin(self) -> None:
        """Wait until an answer has begun.

        Raises:
            ApiError: all of them failed first; the failure that came first.
        """
        try:
            async for piece in self._pieces:
                self._early.append(piece)
                if piece.failure is None:
                    return
        except BaseException:
            await self.close()
            raise
        failure = self._early[0].failure
        assert failure is not None, "the answers ended without a piece that is their last"
        raise failure

    async def __aiter__(self) -> AsyncIterator[Piece]:
        for piece in self._early:
            yield piece
        async for piece in self._pieces:
            yield piece

    async def close(self) -> None:
        """Cancels what has not ended."""
        await self._pieces.aclose()


async def _pieces(opinion: int, answer: Answer) -> AsyncGenerator[Piece, None]:
    try:
        async with contextlib.aclosing(answer.events()) as events:
            async for event in events:
                if event.finish_reason is None:
                    yield Piece(opinion, event.text)
                    continue
                failure = failure_of(event)
                yield Piece(opinion, event.text, None if failure else event, failure)
    except Exception as error:
        log_unexpected(error, "a stream")
        yield Piece(opinion, failure=internal_error())


async def _side_by_side(answers: Sequence[Answer]) -> AsyncGenerator[Piece, None]:
    queue: asyncio.Queue[Piece] = asyncio.Queue()

    async def pump(opinion: int, answer: Answer) -> None:
        async with contextlib.aclosing(_pieces(opinion, answer)) as pieces:
            async for piece in pieces:
                queue.put_nowait(piece)

    pumps = [asyncio.create_task(pump(*numbered)) for numbered in enumerate(answers)]
    num_left = len(pumps)
    try:
        while num_left:
            piece = await queue.get()
            num_left -= piece.is_last
            yield piece
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
