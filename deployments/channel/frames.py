"""The wire format: length-prefixed msgpack frames that carry events of many answers at once.

    4 bytes   length of the payload, big-endian
    payload   msgpack: the first frame of a connection is ["polyclinic", 1, token], and every later
              one is a list of events, each a list of the nine fields that `pack_events` writes,
              and of a tenth and an eleventh, if there are some: the scores of its tokens, and the
              number of the prompt's that were cached

A connection carries frames in one direction only, from a model replica to a router replica.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack

from deployments.engine.request import ErrorInfo, FinishReason, ScoredToken, Timings, TokenEvent

GREETING = "polyclinic"
VERSION = 1
MAX_FRAME_BYTES = 16 * 1024 * 1024
MAX_SCORES = 50_000  # in one event: a token's text may be as long as 128 characters, twice
_LENGTH = struct.Struct(">I")


class BadFrame(Exception):
    """The peer sent something that is not a frame of this format; the connection must end."""


@dataclass(frozen=True, slots=True)
class ChannelAddress:
    """Where a router replica listens. `token` must be in the first frame of each connection."""

    host: str
    port: int
    token: str


def pack_greeting(token: str) -> bytes:
    return pack_frame([GREETING, VERSION, token])


def pack_events(events: Sequence[tuple[int, TokenEvent]]) -> bytes:
    """Return one frame that holds all `events`, each with the id of its stream."""
    return pack_frame([_fields(stream, event) for stream, event in events])


def parts_of(event: TokenEvent) -> Iterator[TokenEvent]:
    """Yield an event as several whose frames are small enough: all but the last hold scores alone,
    and the receiver joins what it has not handed on (RequestOutputCollector)."""
    begin = size = 0
    for end, score in enumerate(event.scores):
        size += 1 + len(score.top)
        if size > MAX_SCORES and end > begin:
            part = event.scores[begin:end]
            yield replace(event, text="", finish_reason=None, error=None, scores=part)
            begin, size = end, 1 + len(score.top)
    yield replace(event, scores=event.scores[begin:]) if begin else event


def unpack_greeting(payload: bytes) -> str:
    """Return the token of a connection's first frame.

    Raises:
        BadFrame: The payload is not a greeting of this version.
    """
    found = load_frame(payload)
    if not (isinstance(found, list) and len(found) == 3 and found[:2] == [GREETING, VERSION]):
        raise BadFrame("the first frame is not a greeting of this version")
    if not isinstance(found[2], str):
        raise BadFrame("the greeting's token is not a text")
    return found[2]


def unpack_events(payload: bytes) -> list[tuple[int, TokenEvent]]:
    """Return the events of a frame, each with the id of its stream. `request_id` is left empty:
    the receiver knows it from the stream.

    Raises:
        BadFrame: The payload does not hold events.
    """
    found = load_frame(payload)
    if not isinstance(found, list):
        raise BadFrame("a frame is not a list of events")
    try:
        return [_event(*item) for item in found]
    except (TypeError, ValueError) as error:
        raise BadFrame(
            f"a frame holds something that is not an event: {type(error).__name__}"
        ) from None


class FrameReader:
    """Cuts a stream of bytes into the payloads of frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each payload that is complete once `data` has arrived.

        Raises:
            BadFrame: A frame claims to be longer than MAX_FRAME_BYTES.
        """
        self._buffer += data
        start, size = 0, len(self._buffer)
        try:
            while size - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, start)
                if length > MAX_FRAME_BYTES:
                    raise BadFrame(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES}")
                end = start + _LENGTH.size + length
                if end > size:
                    return
                payload = bytes(self._buffer[start + _LENGTH.size : end])
                start = end
                yield payload
        finally:
            del self._buffer[:start]


def pack_frame(content: list[Any]) -> bytes:
    """Return `content` as one frame."""
    payload: bytes = msgpack.packb(content)
    return _LENGTH.pack(len(payload)) + payload


def load_frame(payload: bytes) -> Any:
    """Return what a frame holds; raises BadFrame if it is not msgpack."""
    try:
        return msgpack.unpackb(payload)
    except (ValueError, msgpack.UnpackException) as error:
        raise BadFrame(f"a frame is not msgpack: {type(error).__name__}") from None


def _fields(stream: int, event: TokenEvent) -> list[Any]:
    timings, error = event.timings, event.error
    cached = [event.num_cached_tokens] if event.num_cached_tokens else []
    scores = [list(event.scores)] if event.scores or cached else []
    return [
        stream,
        event.text,
        event.num_tokens,
        event.num_prompt_tokens,
        timings.queue_s,
        timings.first_token_s,
        timings.total_s,
        None if event.finish_reason is None else str(event.finish_reason),
        None if error is None else [error.code, error.message, error.param, error.retry_after_s],
        *scores,
        *cached,
    ]


def _event(
    stream: int,
    text: str,
    num_tokens: int,
    num_prompt_tokens: int,
    queue_s: float | None,
    first_token_s: float | None,
    total_s: float | None,
    finish_reason: str | None,
    error: list[Any] | None,
    scores: Sequence[list[Any]] = (),
    num_cached_tokens: int = 0,
) -> tuple[int, TokenEvent]:
    numbers = (stream, num_tokens, num_prompt_tokens, num_cached_tokens)
    if not isinstance(text, str) or not all(type(number) is int for number in numbers):
        raise ValueError("a field has the wrong type")
    return stream, TokenEvent(
        "",
        text,
        num_tokens,
        num_prompt_tokens,
        Timings(queue_s, first_token_s, total_s),
        None if finish_reason is None else FinishReason(finish_reason),
        None if error is None else ErrorInfo(*error),
        tuple(_scored(*score) for score in scores),
        num_cached_tokens,
    )


def _scored(
    text: str, data: bytes, offset: int, logprob: float | None, top: list[Any], is_text: bool
) -> ScoredToken:
    likely = tuple((other, its_data, value) for other, its_data, value in top)
    return ScoredToken(text, data, offset, logprob, likely, is_text)
