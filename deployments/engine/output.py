"""Turn the tokens of one request into text and events, exactly one of them terminal, at the end.

A byte-level tokenizer may spread one character over several tokens, and a SentencePiece one drops
the space of a text's first word. So each step decodes a short window twice, with and without the
new tokens, and takes the difference; text that ends in an unfinished character is held back (the
approach of text-generation-inference and vLLM). The window begins with tokens that have text of
their own, so that the first word's rule meets the same ones both times.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

from deployments.engine.detokenizer import Decode
from deployments.engine.repetition import LoopStop
from deployments.engine.request import (
    NO_DRAFTS,
    Drafts,
    ErrorInfo,
    FinishReason,
    Request,
    ScoredToken,
    Timings,
    TokenEvent,
    TokenScore,
)
from deployments.engine.scores.scored_text import ScoredText, TokenBytes

# For these reasons the text that was held back is emitted.
_COMPLETE = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.LOOP, FinishReason.TIMEOUT)
# A whole answer is decoded this many tokens at a time where it may have to end at a loop.
_LOOP_CHECK_TOKENS = 8
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_MAX_UNREAD = 8  # tokens that end in U+FFFD: more than one character of four bytes needs
_MAX_CHARACTER = 4  # as many U+FFFD at most stand for one unfinished character


class RequestOutputCollector:
    """Hand events to one reader, on one event loop.

    At most one event is queued: what was not read yet is joined with what comes next. So a reader
    that is slow, or that never reads, costs the memory of its text, and the engine never waits.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._scores: list[ScoredToken] = []
        self._latest: TokenEvent | None = None
        self._has_ended = False
        self._arrived = asyncio.Event()

    def put(self, event: TokenEvent) -> None:
        """Queue an event. What comes after a terminal event is dropped."""
        if self._has_ended:
            return
        self._has_ended = event.finish_reason is not None
        self._texts.append(event.text)
        self._scores += event.scores
        self._latest = event  # it holds the totals so far
        self._arrived.set()

    async def get(self) -> TokenEvent:
        """Wait for and return all that came since the last call, as one event."""
        await self._arrived.wait()
        event = self._latest
        assert event is not None, "arrived is set, and no event is there"
        if len(self._texts) > 1:
            scores = tuple(self._scores)
            event = dataclasses.replace(event, text="".join(self._texts), scores=scores)
        self._texts, self._scores, self._latest = [], [], None
        self._arrived.clear()
        return event


@dataclasses.dataclass(slots=True)
class Pace:
    """Hold the time between two pieces of one stream, in seconds. It may change.

    is_together: all streams emit at the same moments, `interval_s` apart, so that their pieces wake
        the processes on the way once for all. Otherwise each has a rhythm of its own, and the
        pieces are spread.
    """

    interval_s: float = 0.0
    is_together: bool = False

    def is_due(self, emitted_at: float, now: float) -> bool:
        """Return whether a stream that emitted last at `emitted_at` emits again now."""
        if self.is_together and self.interval_s:
            return now // self.interval_s > emitted_at // self.interval_s
        return now - emitted_at >= self.interval_s


class RequestState:
    """Turn the tokens of one request into events for its reader, all on one event loop.

    Args:
        decode: token ids -> text.
        stream: False for one event with the whole text.
        pace: how often text is emitted, so that fast tokens travel in groups; the first token is
            emitted at once.
        clock: seconds, monotonic.
        hidden_ids: tokens without text, which are not decoded.
        data_of: the bytes of a token, for a request that asks for log-probabilities.
    """

    def __init__(
        self,
        request: Request,
        decode: Decode,
        *,
        stream: bool,
        pace: Pace,
        clock: Callable[[], float],
        hidden_ids: frozenset[int] = frozenset(),
        data_of: TokenBytes = lambda token_id: b"",
    ) -> None:
        self.request = request
        self.events = RequestOutputCollector()
        self.is_done = False
        self.has_begun = False
        self._text_stream = IncrementalDetokenizer(decode, request.sampling.stop)
        sampling = request.sampling
        self._loop_stop = LoopStop(0 if sampling.min_tokens else sampling.loop_words)
        self._stream = stream
        self._pace = pace
        self._clock = clock
        self._hidden_ids = hidden_ids
        self._accepted_at = clock()
        self._emitted_at = self._accepted_at
        self._queue_s: float | None = None
        self._first_token_s: float | None = None
        self._num_tokens = 0
        self._num_cached_tokens = 0
        self._drafts = NO_DRAFTS
        self._undecoded: list[int] = []
        self._pending_text = ""
        self._num_characters = 0  # emitted
        self._scored: ScoredText | None = None
        if sampling.logprobs is not None:
            self._scored = ScoredText(decode, data_of, hidden_ids)

    def begin(self, num_cached_tokens: int = 0) -> None:
        """Note that its first step runs, and reads so many prompt tokens less."""
        self.has_begun = True
        self._num_cached_tokens = num_cached_tokens
        self._queue_s = self._clock() - self._accepted_at
        if self.request.sampling.echo:
            prompt = self.request.prompt_ids
            shown = [id_ for id_ in prompt if id_ not in self._hidden_ids]
            self._pending_text = self._text_stream.begin(shown)
            if self._scored is not None:
                self._scored.add([TokenScore(prompt[0], None)])

    def count(self, drafts: Drafts) -> None:
        """Count what was guessed of the tokens that are pushed next."""
        self._drafts = self._drafts.plus(drafts)

    def score(self, scores: Sequence[TokenScore]) -> None:
        """Take the scores of the tokens that are pushed next; with `echo`, the prompt's first."""
        if self._scored is not None and not self.is_done:
            self._scored.add(scores)

    def push(self, token_id: int, now: float) -> None:
        """Take the next token, and emit what is due. A stop string or a loop ends the request."""
        self._num_tokens += 1
        if token_id not in self._hidden_ids:
            self._undecoded.append(token_id)
        if self._first_token_s is None:
            self._first_token_s = now - self._accepted_at
            is_due = self._stream
        else:
            is_due = self._stream and self._pace.is_due(self._emitted_at, now)
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

    def fail(self, error: ErrorInfo) -> None:
        """End it, whatever it was about when something of it raised."""
        self._scored, self.is_done = None, False
        self.finish(FinishReason.ERROR, 0, error)

    @property
    def _is_loop_check_due(self) -> bool:
        return bool(self.request.sampling.loop_words) and len(self._undecoded) >= _LOOP_CHECK_TOKENS

    def _decode_pending(self) -> None:
        if self._undecoded and not self._text_stream.is_stopped:
            self._pending_text += self._loop_stop.extend(self._text_stream.extend(self._undecoded))
        self._undecoded = []

    def _emit(self, reason: FinishReason | None, error: ErrorInfo | None = None) -> None:
        self._emitted_at = self._clock()
        self._num_characters += len(self._pending_text)
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
            scores=() if self._scored is None else self._scored.release(self._limit_of(reason)),
            num_cached_tokens=self._num_cached_tokens if reason else 0,
            drafts=self._drafts if reason else NO_DRAFTS,
        )
        self.events.put(event)

    def _limit_of(self, reason: FinishReason | None) -> int | None:
        """Return within how many characters tokens are handed out; None: all but for an answer that
        was cut, whose stop string or loop is no part of it."""
        is_cut = self._text_stream.is_stopped or self._loop_stop.is_looping
        return None if reason in _COMPLETE and not is_cut else self._num_characters


class IncrementalDetokenizer:
    """Decode one answer as its tokens arrive, and find stop strings.

    The texts that it returns add up to the same, however the tokens are grouped. A last character
    that is not finished is left out.

    Args:
        decode: token ids -> text. What more tokens add may not change what stands before them, but
            for a last unfinished character, which is U+FFFD.
        stop: the answer ends before the first of these that is complete.
    """

    def __init__(self, decode: Decode, stop: tuple[str, ...] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._window: list[int] = []
        self._num_first = 0  # tokens at the window's begin that have text of their own
        self._num_read = 0  # tokens of the window whose text is known, those included
        self._read_text = ""  # of these
        self._invalid = ""  # U+FFFD at the end of the known text: left out if nothing follows
        self._held = ""  # decoded, but possibly the start of a stop string
        self.is_stopped = False  # a stop string was found; the text ends before it

    def begin(self, token_ids: Sequence[int]) -> str:
        """Add the tokens that the answer continues; return their text, without a stop for it."""
        stop, self._stop = self._stop, ()
        text = self.extend(token_ids)
        self._stop = stop
        return text

    def extend(self, token_ids: Sequence[int]) -> str:
        """Add tokens, decoded together, and return the text that is now certain."""
        self._window.extend(token_ids)
        return self._release(self._valid(self._read()))

    def finish(self) -> str:
        """End the answer and return what was held back, without an unfinished character."""
        if self.is_stopped:
            return ""
        text = self._decode(self._window)[len(self._read_text) :]
        text = self._release(self._valid(text))
        if not self.is_stopped:
            text, self._held = text + self._held, ""
        return text

    def _read(self) -> str:
        """Return the text of the unread tokens, as far as it is certain."""
        text = self._decode(self._window)
        end = len(self._window)
        if text.endswith(_UNFINISHED):
            end, text = self._settled(text)
        added = text[len(self._read_text) :]
        self._num_read, self._read_text = end, text
        self._move_window()
        return added

    def _move_window(self) -> None:
        """Forget the window's first tokens, if what was read after them has text of its own."""
        behind = self._window[self._num_first : self._num_read]
        if text := self._decode(behind):
            del self._window[: self._num_first]
            self._num_first = self._num_read = len(behind)
            self._read_text = text

    def _settled(self, text: str) -> tuple[int, str]:
        """Return how many tokens of a window that ends in U+FFFD no later one changes, and their
        text. Many bytes that make no character would let the window grow for ever."""
        num_unread = len(self._window) - self._num_read
        if num_unread > _MAX_UNREAD:
            end = self._num_read + num_unread // 2
            begin = self._decode(self._window[:end])
            if text.startswith(begin) and len(text) - len(begin) >= _MAX_CHARACTER:
                return end, begin
        return self._num_read, self._read_text

    def _valid(self, text: str) -> str:
        """Hold back U+FFFD at the end, and return those held before if text follows them."""
        text = self._invalid + text
        valid = text.rstrip(_UNFINISHED)
        self._invalid = text[len(valid) :]
        return valid

    def _release(self, text: str) -> str:
        self._held += text
        found = [(at + len(s), at) for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self.is_stopped = True
            _, at = min(found)
            released, self._held = self._held[:at], ""
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
