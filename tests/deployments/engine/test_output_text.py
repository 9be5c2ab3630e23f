"""IncrementalDetokenizer: whatever the chunks, the text is that of decoding everything at once."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.output import IncrementalDetokenizer


def decode_bytes(token_ids: Sequence[int]) -> str:
    """One token a byte: the hardest case for unfinished characters."""
    return bytes(token_ids).decode("utf-8", errors="replace")


def decode_pieces(token_ids: Sequence[int]) -> str:
    """Sentence-piece manners: every piece brings a space, the first of a text loses it."""
    return "".join(f" w{token_id}" for token_id in token_ids).lstrip()


def streamed(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], IncrementalDetokenizer]:
    stream = IncrementalDetokenizer(decode_bytes, stop)
    pieces = []
    for token_id in text.encode():
        pieces.append(stream.extend([token_id]))
        if stream.is_stopped:
            return pieces, stream
    pieces.append(stream.finish())
    return pieces, stream


@given(st.text(max_size=40))
def test_the_pieces_add_up(text: str) -> None:
    """But for U+FFFD at the end, which stands for an unfinished character too."""
    pieces, _ = streamed(text)
    assert "".join(pieces) == text.rstrip("\N{REPLACEMENT CHARACTER}")


def test_an_unfinished_character_is_held_back() -> None:
    pieces, _ = streamed("aé")
    assert pieces == ["a", "", "é", ""]


def test_an_answer_cut_inside_a_character_ends_before_it() -> None:
    stream = IncrementalDetokenizer(decode_bytes)
    first, second = stream.extend([ord("a")]), stream.extend("é".encode()[:1])
    assert (first, second) == ("a", "")
    assert stream.finish() == ""


def test_spaces_between_pieces_survive() -> None:
    stream = IncrementalDetokenizer(decode_pieces)
    text = "".join(stream.extend([token_id]) for token_id in (1, 2, 3)) + stream.finish()
    assert text == "w1 w2 w3"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one END two", ("END",), "one "),
        ("one END two", ("two", "END"), "one "),
        ("ENENEND", ("END",), "ENEN"),
        ("no stop EN", ("END",), "no stop EN"),
        ("END", ("END",), ""),
        ("été END", ("é E",), "ét"),
        ("one two three", ("two three", "wo"), "one t"),
    ],
)
def test_stop_strings(text: str, stop: tuple[str, ...], expected: str) -> None:
    pieces, stream = streamed(text, stop)
    assert "".join(pieces) == expected
    assert stream.is_stopped == (expected != text)


@given(st.text(alphabet="abé ", max_size=30), st.text(alphabet="abé", min_size=1, max_size=3))
def test_nothing_of_a_stop_string_leaks(text: str, stop: str) -> None:
    pieces, _ = streamed(text, (stop,))
    assert "".join(pieces) == text.split(stop)[0]
