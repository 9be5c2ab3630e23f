"""Where a token stands in the text, for bytes that make no characters too."""

import itertools
from collections.abc import Sequence

import pytest

from deployments.engine.request import TokenScore
from deployments.engine.scores.scored_text import ScoredText

# Tokens of one or two bytes: letters, and every place of characters of two, three and four bytes.
PIECES = [b"a", b" b", b"\xc3", b"\xa9", b"\xe2", b"\x82", b"\xac", b"\xf0", b"\x9f", b"\xe0",
          b"\x80", b"\xff", b"\xed", b"t\xc3", b"\xac\xe2", b"\xef\xbf", b"\xbd"]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_token_stands_where_its_first_byte_is(size: int) -> None:
    """Of each sequence of tokens, against the text of all their bytes."""
    for tokens in itertools.product(range(len(PIECES)), repeat=size):
        scored = ScoredText(_text, PIECES.__getitem__, frozenset())
        scored.add(TokenScore(token, 0.0) for token in tokens)
        data = b"".join(PIECES[token] for token in tokens)
        starts = _character_of_each_byte(data)
        at = itertools.accumulate((len(PIECES[token]) for token in tokens), initial=0)
        found = [token.offset for token in scored.release(None)]
        assert found == [starts[place] for place, _ in zip(at, tokens, strict=False)], data


def _text(token_ids: Sequence[int]) -> str:
    return b"".join(PIECES[token] for token in token_ids).decode(errors="replace")


def _character_of_each_byte(data: bytes) -> list[int]:
    return [
        place for place, character in enumerate(_characters(data)) for _ in range(len(character))
    ]


def _characters(data: bytes) -> list[bytes]:
    """Cut bytes into those that become one character each, as Python decodes them."""
    found: list[bytes] = []
    while data:
        try:
            text = data.decode()
            return [*found, *(letter.encode() for letter in text)]
        except UnicodeDecodeError as error:
            found += [letter.encode() for letter in data[: error.start].decode()]
            found.append(data[error.start : error.end])
            data = data[error.end :]
    return found
