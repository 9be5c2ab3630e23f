"""The prompt format, one for training, evaluation and serving.

Two formats, named in the catalogue for each base model:

`chat` (causal models): the tokenizer's chat template, with our one system line first.

`plain` (T5): plain text; the system line, a blank line, then one paragraph a turn, and the cue for
the answer:

    You are a careful medical assistant. ...

    Question: What is eczema?

    Answer: ...

    Question: And the treatment?

    Answer:

A client's system message replaces our system line. A client's text can never become a control
token: the template is rendered around placeholders, and each piece of text is tokenised
separately, with special tokens split into ordinary ones. Control tokens of the template itself are
looked up by name, so the tokenizer's switch for splitting is never turned off again: it is state
that threads share.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
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
    """Return the exact ids that the model gets.

    Args:
        messages: in order; a system message may only come first and replaces `system_line`;
            the last one is the user's.
        tokenizer: a transformers fast tokenizer.
        answer_language: an English name of a language; the system line then asks for it.

    Raises:
        ValueError: no message, the last is not the user's, a system message not first, or the
            tokenizer's chat template refuses these messages.
    """
    turns = _with_system_line(messages, system_line, answer_language)
    if prompt_format == "plain":
        ids = _tokenise(tokenizer, _plain_text(turns))
        return [*ids, tokenizer.eos_token_id]
    ids = []
    for text, is_content in _chat_pieces(turns, tokenizer):
        ids += _tokenise(tokenizer, text) if is_content else _template_ids(tokenizer, text)
    return ids


def render(
    prompt_format: PromptFormat,
    messages: Sequence[Message],
    *,
    tokenizer: Any,
    system_line: str,
    answer_language: str | None = None,
) -> str:
    """Return the prompt as text, for people to read. A model gets `encode_prompt`.

    Raises:
        ValueError: as `encode_prompt`.
    """
    turns = _with_system_line(messages, system_line, answer_language)
    if prompt_format == "plain":
        return _plain_text(turns)
    return "".join(text for text, _ in _chat_pieces(turns, tokenizer))


def encode_example(
    prompt_format: PromptFormat, question: str, answer: str, *, tokenizer: Any, system_line: str
) -> tuple[list[int], list[int]]:
    """Return (prompt ids, answer ids with the end-of-sequence id) of one training example."""
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
    """Render the template into pieces: (text, whether it is a message's content)."""
    from jinja2 import TemplateError

    while True:
        marks = [secrets.token_hex(8) for _ in turns]
        if not any(mark in turn.content for mark in marks for turn in turns):
            break
    chat = [{"role": turn.role, "content": mark} for turn, mark in zip(turns, marks, strict=True)]
    try:
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:  # some templates demand alternating roles, or no system line
        raise ValueError(
            f"the base model's chat template refuses these messages: {error}"
        ) from None
    contents = dict(zip(marks, (turn.content for turn in turns), strict=True))
    split = re.split("(" + "|".join(marks) + ")", rendered)
    missing = set(marks) - set(split)
    if missing:
        raise ValueError(
            f"the tokenizer's chat template left out {len(missing)} of {len(turns)} messages: "
            "it cannot be used with prompt format 'chat'"
        )
    return [(contents.get(piece, piece), piece in contents) for piece in split if piece]


def _template_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of the template's text, in which special tokens count as such."""
    special = _special_tokens(tokenizer)
    longest_first = sorted(special, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    ids = []
    for part in parts if special else [text]:
        ids += [special[part]] if part in special else _tokenise(tokenizer, part)
    return ids


def _tokenise(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of plain text: what looks like a special token is spelt in ordinary ones.

    `split_special_tokens` does that for byte-level BPE. T5's special tokens are pieces of its
    vocabulary too, and compatible characters normalise to them, so the ids are looked at as well.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    special = {id_: token for token, id_ in _special_tokens(tokenizer).items()}
    special.pop(tokenizer.unk_token_id, None)  # an unknown word, not a control token
    if special.keys().isdisjoint(ids):
        return ids
    pieces = [list(special[id_]) if id_ in special else [id_] for id_ in ids]
    spelt = [
        p if isinstance(p, int) else tokenizer.convert_tokens_to_ids(p) for p in chain(*pieces)
    ]
    return [id_ for id_ in spelt if id_ is not None]


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    """Return token -> id, also of those without a name (`eos_token`, ...) in the tokenizer."""
    added = tokenizer.added_tokens_decoder
    return {token.content: id_ for id_, token in added.items() if token.special}
