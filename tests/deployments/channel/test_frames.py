"""Frames: what goes in comes out, however the bytes are cut; what is not a frame is refused."""

import struct
from itertools import pairwise

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.channel import frames
from deployments.channel.frames import (
    BadFrame,
    FrameReader,
    pack_events,
    pack_greeting,
    unpack_events,
    unpack_greeting,
)
from deployments.engine.request import ErrorInfo, FinishReason, Timings, TokenEvent

SECONDS = st.none() | st.floats(0, 1e6, allow_nan=False)
COUNTS = st.integers(0, 2**31)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
EVENTS = st.builds(
    TokenEvent,
    st.just(""),
    TEXTS,
    COUNTS,
    COUNTS,
    st.builds(Timings, SECONDS, SECONDS, SECONDS),
    st.none() | st.sampled_from(FinishReason),
    st.none() | st.builds(ErrorInfo, TEXTS, TEXTS, st.none() | TEXTS, st.none() | COUNTS),
)


@given(
    st.lists(st.lists(st.tuples(COUNTS, EVENTS), max_size=5), max_size=4),
    st.lists(st.integers(0, 10_000), max_size=30),
)
def test_events_survive_however_the_bytes_are_cut(
    batches: list[list[tuple[int, TokenEvent]]], cuts: list[int]
) -> None:
    data = b"".join(pack_events(batch) for batch in batches)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    reader = FrameReader()
    payloads = [p for a, b in pairwise(places) for p in reader.feed(data[a:b])]
    assert [unpack_events(payload) for payload in payloads] == batches


def test_a_greeting_carries_the_token() -> None:
    (payload,) = FrameReader().feed(pack_greeting("secret"))
    assert unpack_greeting(payload) == "secret"


@pytest.mark.parametrize(
    "content",
    [
        ["polyclinic", 2, "t"],
        ["another", 1, "t"],
        ["polyclinic", 1],
        ["polyclinic", 1, 7],
        {"polyclinic": 1},
        None,
    ],
)
def test_a_greeting_that_is_not_ours(content: object) -> None:
    with pytest.raises(BadFrame):
        unpack_greeting(msgpack.packb(content))


@pytest.mark.parametrize(
    "content",
    [
        {},
        None,
        [7],
        [[1, "text"]],
        [[1, "text", 1, 1, None, None, None, "no such reason", None]],
        [[1, 5, 1, 1, None, None, None, None, None]],
        [["1", "text", 1, 1, None, None, None, None, None]],
        [[1, "text", True, 1, None, None, None, None, None]],
        [[1, "text", 1, 1, None, None, None, "error", ["a", "b", "c", "d", "e"]]],
    ],
)
def test_events_that_are_not_ours(content: object) -> None:
    with pytest.raises(BadFrame):
        unpack_events(msgpack.packb(content))


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"GET / HTTP/1.1", b"\x91\x91"])
def test_bytes_that_are_not_msgpack(payload: bytes) -> None:
    with pytest.raises(BadFrame):
        unpack_events(payload)


def test_a_frame_that_claims_too_much_is_refused_before_it_is_read() -> None:
    with pytest.raises(BadFrame, match="at most"):
        list(FrameReader().feed(struct.pack(">I", frames.MAX_FRAME_BYTES + 1)))
