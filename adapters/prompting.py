"""The prompt format: one function, for training, evaluation and serving.

Two formats, named in the catalogue for each base model:

`chat` (causal models): the tokenizer's chat template, with our one system line first.

`plain` (T5): plain text; the system line, a blank line, then one paragraph a turn, and the cue for
the answer:

    You are a careful medical assistant. ...

    Question: What is eczema?

    Answer: ...

    Question: And the treatment?

    Answer:

A client's system message takes the place of our system line. Text of a client can never become a
control token: the template is rendered around placeholders, and each piece of text is tokenised
on its own with special tokens split into ordinary ones.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

PromptFormat = Literal["chat", "plain"]
PROMPT_FORMATS: tuple[PromptFormat, ...] = ("chat", "plain")
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


def encode_prompt(
    prompt_format: PromptFormat,
    messages: Sequence[Message],
    *,
    tokenizer: Any,
    system_line: str,
    answer_language: str | None = None,
) -> list[int]:
    """The exact ids that the model gets.

    Args:
        messages: in order; a system message may only come first and replaces `system_line`;
            the last one is the user's.
        tokenizer: a transformers fast tokenizer.
        answer_language: an English name of a language; the system line then asks for it.

    Raises:
        ValueError: no message, the last is not the user's, or a system message not first.
    """
    turns = _with_system_line(messages, system_line, answer_language)
    if prompt_format == "plain":
        ids = _tokenise(tokenizer, _plain_text(turns))
        return [*ids, tokenizer.eos_token_id]
    pieces = _chat_pieces(turns, tokenizer)
    return [id_ for text, is_content in pieces for id_ in _piece_ids(tokenizer, text, is_content)]


def encode_example(
    prompt_format: PromptFormat, question: str, answer: str, *, tokenizer: Any, system_line: str
) -> tuple[list[int], list[int]]:
    """(prompt ids, answer ids ending in the end-of-sequence id) of one training example."""
    messages = [Message("user", question)]
    prompt = encode_prompt(prompt_format, messages, tokenizer=tokenizer, system_line=system_line)
    return prompt, [*_tokenise(tokenizer, answer.strip()), tokenizer.eos_token_id]


def _with_system_line(
    messages: Sequence[Message], system_line: str, answer_language: str | None
) -> list[Message]:
    if not messages or messages[-1].role != "user":
        raise ValueError("the last message must be the user's")
    if any(message.role == "system" for message in messages[1:]):
        raise ValueError("a system message may only come first")
    turns = list(messages)
    line = turns.pop(0).content if turns[0].role == "system" else system_line
    if answer_language is not None:
        line = f"{line} Answer in {answer_language}.".lstrip()
    return [Message("system", line), *turns]


def _plain_text(turns: Sequence[Message]) -> str:
    names = {"user": "Question: ", "assistant": "Answer: ", "system": ""}
    paragraphs = [names[turn.role] + turn.content for turn in turns]
    return "\n\n".join([*paragraphs, "Answer:"])


def _chat_pieces(turns: Sequence[Message], tokenizer: Any) -> list[tuple[str, bool]]:
    """The rendered template as pieces: (text, whether it is a client's or an answer's words)."""
    while True:
        marks = [secrets.token_hex(8) for _ in turns]
        if not any(mark in turn.content for mark in marks for turn in turns):
            break
    chat = [{"role": turn.role, "content": mark} for turn, mark in zip(turns, marks, strict=True)]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    contents = dict(zip(marks, (turn.content for turn in turns), strict=True))
    split = re.split("(" + "|".join(marks) + ")", rendered)
    missing = set(marks) - set(split)
    if missing:
        raise ValueError(
            f"the tokenizer's chat template left out {len(missing)} of {len(turns)} messages: "
            "it cannot be used with prompt format 'chat'"
        )
    return [(contents.get(piece, piece), piece in contents) for piece in split if piece]


def _piece_ids(tokenizer: Any, text: str, is_content: bool) -> list[int]:
    if is_content:
        return _tokenise(tokenizer, text)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _tokenise(tokenizer: Any, text: str) -> list[int]:
    """Ids of plain text: what looks like a special token is spelt out in ordinary ones."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    return ids
