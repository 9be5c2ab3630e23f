"""How passages stand before a question in the user's turn, one way for training and serving.

    Passages:
    [1] Eczematoid dermatitis: Eczema is a form of dermatitis ...
    [2] ...

    Answer the question from the passages and cite them, such as [1].

    What is eczema?

A passage is data: it is one line, so that none can look like another, like the question or like a
turn; prompting.py keeps what looks like a control token from becoming one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapters.prompting import Message

MAX_PASSAGES_CHARS = 1800  # of all passages together, about 450 tokens
MIN_PASSAGE_CHARS = 200  # what one keeps, however little room there is
_ASKED = "Answer the question from the passages and cite them, such as [1]."


@dataclass(frozen=True, slots=True)
class SourceText:
    """What a prompt shows of a passage."""

    title: str
    text: str


def with_passages(
    turns: Sequence[Message],
    passages: Sequence[SourceText],
    *,
    max_chars: int = MAX_PASSAGES_CHARS,
) -> tuple[Message, ...]:
    """Return the conversation with numbered passages in its last turn; without any, as it is.

    Args:
        turns: the last one is the user's.
        max_chars: of all passages; each gets an equal part, and what a short one leaves goes to
            those after it.
    """
    if not passages:
        return tuple(turns)
    lines, left = [], max_chars
    for number, passage in enumerate(passages, 1):
        share = max(MIN_PASSAGE_CHARS, left // (len(passages) - number + 1))
        line = cut(f"{_one_line(passage.title)}: {_one_line(passage.text)}", share)
        lines.append(f"[{number}] {line}")
        left -= len(line)
    listed = "\n".join(["Passages:", *lines])
    content = f"{listed}\n\n{_ASKED}\n\n{turns[-1].content}"
    return (*turns[:-1], replace(turns[-1], content=content))


def room_for_passages(turns: Sequence[Message], max_input_tokens: int) -> int:
    """Return `max_chars` so that a long conversation keeps its place in the prompt.

    Three characters are taken for a token, which is careful for English (about four).
    """
    said = sum(len(turn.content) for turn in turns)
    return max(0, min(MAX_PASSAGES_CHARS, 3 * max_input_tokens - said))


def cut(text: str, limit: int) -> str:
    """Return the text, or its beginning to the last word within the limit and an ellipsis."""
    if len(text) <= limit:
        return text
    end = text.rfind(" ", 0, limit)
    return text[: end if end > 0 else limit] + " \u2026"


def _one_line(text: str) -> str:
    return " ".join(text.split())
