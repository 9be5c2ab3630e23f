"""Turn the tokens of one request into text and events, exactly one of them terminal, at the end.

A byte-level tokenizer may spread one character over several tokens, and a SentencePiece one adds
or drops a space depending on what comes before. So each step decodes a short window twice, with
and without the new tokens, and takes the difference; text that ends in an unfinished character
is held back (the approach of text-generation-inference and vLLM).
"""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from deployments.engine.repetition import LoopStop
from deployments.engine.request import ErrorInfo, FinishReason, Request, Timings, TokenEvent

# For these reasons the text that was held back is emitted.
_COMPLETE = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.LOOP, FinishReason.TIMEOUT)
# A whole answer is decoded this many tokens at a time where it may have to end at a loop.
_LOOP_CHECK_TOKENS = 8
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class RequestOutputCollector:
    """Hand events to one reader, on one event loop.

    At most one event is queued: what was not read yet is joined with what comes next. So a reader
    that is slow, or that never reads, costs the memory of its text, and the engine never waits.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._latest: TokenEvent | None = None
        self._has_ended = False
        self._arrived = asyncio.Event()

    def put(self, event: TokenEvent) -> None:
        """Queue an event. What comes after a terminal event is dropped."""
        if self._has_ended:
            return
        self._has_ended = event.finish_reason is not None
        self._texts.append(event.text)
        self._latest = event  # it holds the totals so far
        self._arrived.set()

    async def get(self) -> TokenEvent:
        """Wait for and return all that came since the last call, as one event."""
        await self._arrived.wait()
        event = self._latest
        assert event is not None, "arrived is set, and no event is there"
        if len(self._texts) > 1:
            event = dataclasses.replace(event, text="".join(self._texts))
        self._texts, self._latest = [], None
        self._arrived.clear()
        return event


class RequestState:
    """Turn the tokens of one request into events for its reader, all on one event loop.

    Args:
        decode: token ids -> text.
        stream: False for one event with the whole text.
        emit_interval_s: text is emitted at most this often, so that fast tokens travel in groups;
            the first token is emitted at once. 0: each token on arrival.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        request: Request,
        decode: Callable[[Sequence[int]], str],
        *,
        stream: bool,
        emit_interval_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.request = request
        self.events = RequestOutputCollector()
        self.is_done = False
        self.has_begun = False
        self._text_stream = IncrementalDetokenizer(decode, request.sampling.stop)
        sampling = request.sampling
        self._loop_stop = LoopStop(0 if sampling.min_tokens else sampling.loop_words)
        self._stream = stream
        self._emit_interval_s = emit_interval_s
        self._clock = clock
        self._accepted_at = clock()
        self._emitted_at = self._accepted_at
        self._queue_s: float | None = None
        self._first_token_s: float | None = None
        self._num_tokens = 0
        self._undecoded: list[int] = []
        self._pending_text = ""

    def begin(self) -> None:
        """Note that its first step runs."""
        self.has_begun = True
        self._queue_s = self._clock() - self._accepted_at

    def push(self, token_id: int, now: float) -> None:
        """Take the next token, and emit what is due. A stop string or a loop ends the request."""
        self._num_tokens += 1
        self._undecoded.append(token_id)
        if self._first_token_s is None:
            self._first_token_s = now - self._accepted_at
            is_due = self._stream
        else:
            is_due = self._stream and now - self._emitted_at >= self._emit_interval_s
        if is_due or self.request.sampling.stop or self._is_loop_check_due:
            self._decode_pending()
        if self._text_stream.is_stopped:
            self.finish(FinishReason.STOP, self._num_tokens)
        elif self._loop_stop.is_looping:
            self.finish(FinishReason.LOOP, self._num_tokens)
        elif is_due and self._pending_text:
            self._emit(None)

    def finish(self, reason: FinishReason, num_tokens: int, error: ErrorInfo | None = None) -> None:
        """Emit the terminal event; later calls do nothing.

        Args:
            num_tokens: all that were made, an end-of-sequence token included.
        """
        if self.is_done:
            return
        if num_tokens and self._first_token_s is None:
            self._first_token_s = self._clock() - self._accepted_at
        self.is_done = True
        self._num_tokens = max(self._num_tokens, num_tokens)
        if reason in _COMPLETE:
            self._decode_pending()
            self._pending_text += self._loop_stop.extend(self._text_stream.finish())
            self._pending_text += self._loop_stop.finish()
            if self._loop_stop.is_looping:
                reason = FinishReason.LOOP
            elif self._text_stream.is_stopped:
                reason = FinishReason.STOP
        self._emit(reason, error)

    @property
    def _is_loop_check_due(self) -> bool:
        return bool(self.request.sampling.loop_words) and len(self._undecoded) >= _LOOP_CHECK_TOKENS

    def _decode_pending(self) -> None:
        if self._undecoded and not self._text_stream.is_stopped:
            self._pending_text += self._loop_stop.extend(self._text_stream.extend(self._undecoded))
        self._undecoded = []

    def _emit(self, reason: FinishReason | None, error: ErrorInfo | None = None) -> None:
        self._emitted_at = self._clock()
        total_s = self._emitted_at - self._accepted_at if reason else None
        text, self._pending_text = self._pending_text, ""
        event = TokenEvent(
            request_id=self.request.request_id,
            text=text,
            num_tokens=self._num_tokens,
            num_prompt_tokens=len(self.request.prompt_ids),
            timings=Timings(self._queue_s, self._first_token_s, total_s),
            finish_reason=reason,
            error=error,
        )
        self.events.put(event)


def decode_text(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Return the text of token ids, without special tokens."""
    return str(
        tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    )


class IncrementalDetokenizer:
    """Decode one answer as its tokens arrive, and find stop strings."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: tuple[str, ...] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._token_ids: list[int] = []
        self._window_start = 0  # first token of the decoding window
        self._window_read = 0  # tokens of the window whose text has been returned
        self._held = ""  # decoded, but possibly the start of a stop string
        self.is_stopped = False  # a stop string was found; the text ends before it

    def extend(self, token_ids: Sequence[int]) -> str:
        """Add tokens, decoded together, and return the text that is now certain."""
        self._token_ids.extend(token_ids)
        return self._release(self._advance(final=False))

    def finish(self) -> str:
        """End the answer and return what was held back."""
        if self.is_stopped:
            return ""
        text = self._release(self._advance(final=True))
        if self.is_stopped:
            return text
        rest, self._held = self._held, ""
        return text + rest

    def _advance(self, *, final: bool) -> str:
        window = self._token_ids[self._window_start :]
        num_read = self._window_read - self._window_start
        before = self._decode(window[:num_read])
        after = self._decode(window)
        if after.endswith(_UNFINISHED) and not final:
            return ""
        self._window_start = self._window_read
        self._window_read = len(self._token_ids)
        return after[len(before) :]

    def _release(self, text: str) -> str:
        self._held += text
        found = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        if found:
            self.is_stopped = True
            released, self._held = self._held[: min(found)], ""
            return released
        keep = max((_overlap(self._held, s) for s in self._stop), default=0)
        split = len(self._held) - keep
        released, self._held = self._held[:split], self._held[split:]
        return released


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
