"""The prompt format, one for training, evaluation and serving.

Three formats, named in the catalogue for each base model, or for one adapter's version:

`chat` (causal models): the tokenizer's chat template, with our one system line first.

`plain` (T5, and causal models without a template): the system line, a blank line, then one
paragraph a turn, and the cue for the answer:

    You are a careful medical assistant. ...

    Question: What is eczema?

    Answer: ...

    Question: And the treatment?

    Answer:

`raw`: the question and nothing else, as adapters have it that were trained on bare pairs. Further
turns, and what the client says as system, are paragraphs before it.

The last two get the special tokens that the tokenizer adds to any text. A client's system message
replaces our system line.

A template that does not know a conversation's roles gets it in plainer words: several system
messages as one, system text as part of the next user turn, neighbours of one role as one turn.

A client's text can never become a control token: the template is rendered around placeholders, and
each piece of text is tokenised separately, with special tokens split into ordinary ones. Where the
whole, tokenised at once, has the template's control tokens and no others, those ids are taken: they
are what the base model was trained on. Control tokens of the template itself are looked up by name,
so the tokenizer's switch for splitting is never turned off again: it is state that threads share.
"""

import re
import secrets
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PromptFormat = Literal["chat", "plain", "raw"]
PROMPT_FORMATS: tuple[PromptFormat, ...] = ("chat", "plain", "raw")
Role = Literal["system", "user", "assistant"]

# Marks the messages' places in a rendered template. No client knows it.
_SECRET = secrets.token_hex(8)


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
        messages: in order; a system message that comes first replaces `system_line`; the last one
            is the user's.
        tokenizer: a transformers fast tokenizer.
        answer_language: an English name of a language; the system line then asks for it.

    Raises:
        ValueError: no message, the last is not the user's, or the tokenizer's chat template cannot
            write them; prompt_check.py tries it before any is served.
    """
    turns = _with_system_line(prompt_format, messages, system_line, answer_language)
    if prompt_format != "chat":
        return _with_own_tokens(tokenizer, _tokenise(tokenizer, _text_of(prompt_format, turns)))
    return _chat_ids(_chat_pieces(turns, tokenizer), tokenizer)


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
    turns = _with_system_line(prompt_format, messages, system_line, answer_language)
    if prompt_format != "chat":
        return _text_of(prompt_format, turns)
    return "".join(text for text, _ in _chat_pieces(turns, tokenizer))


def encode_example(
    prompt_format: PromptFormat, question: str, answer: str, *, tokenizer: Any, system_line: str
) -> tuple[list[int], list[int]]:
    """Return (prompt ids, answer ids with the end-of-sequence id) of one training example."""
    messages = [Message("user", question)]
    prompt = encode_prompt(prompt_format, messages, tokenizer=tokenizer, system_line=system_line)
    return prompt, [*_tokenise(tokenizer, answer.strip()), tokenizer.eos_token_id]


def _with_system_line(
    prompt_format: PromptFormat,
    messages: Sequence[Message],
    system_line: str,
    answer_language: str | None,
) -> list[Message]:
    if not messages or messages[-1].role != "user":
        raise ValueError("the last message must be the user's")
    turns = list(messages)
    line = "" if prompt_format == "raw" else system_line
    if turns[0].role == "system":
        line = turns.pop(0).content
    if answer_language is not None:
        line = f"{line} Answer in {answer_language}.".lstrip()
    return [Message("system", line), *turns]


def _text_of(prompt_format: PromptFormat, turns: Sequence[Message]) -> str:
    said = [turn for turn in turns if turn.content or turn.role != "system"]
    if prompt_format == "raw":
        return "\n\n".join(turn.content for turn in said)
    names = {"user": "Question: ", "assistant": "Answer: ", "system": ""}
    paragraphs = [names[turn.role] + turn.content for turn in said]
    return "\n\n".join([*paragraphs, "Answer:"])


def _with_own_tokens(tokenizer: Any, ids: list[int]) -> list[int]:
    """Add the special tokens that the tokenizer puts around any text: T5's end, Llama's start."""
    alone, around = (
        tokenizer("a", add_special_tokens=added, split_special_tokens=True).input_ids
        for added in (False, True)
    )
    start = next((i for i in range(len(around)) if around[i : i + len(alone)] == alone), 0)
    return [*around[:start], *ids, *around[start + len(alone) :]]


def _chat_pieces(turns: Sequence[Message], tokenizer: Any) -> list[tuple[str, bool]]:
    """Render the template into pieces: (text, whether it is a message's content)."""
    reasons = []
    for way in _ways(turns):
        try:
            return _rendered(way, tokenizer)
        except Exception as error:  # a template may fail as any program may
            reasons.append(" ".join(f"{error or type(error).__name__}".split())[:300])
    raise ValueError(f"the base model's chat template refuses these messages: {reasons[-1]}")


def _ways(turns: Sequence[Message]) -> Iterator[list[Message]]:
    """Yield the turns as they are, then in ever fewer roles and turns, each way once."""
    num_first = next(i for i, turn in enumerate(turns) if turn.role != "system")
    first, later = turns[:num_first], turns[num_first:]
    spoken = [Message("user", t.content) if t.role == "system" else t for t in later]
    ways = (
        list(turns),
        [*_merged(first), *later],
        [*_merged(first), *_merged(spoken)],
        _alternating([Message("user", turn.content) for turn in first], spoken),
    )
    for number, way in enumerate(ways):
        if way not in ways[:number]:
            yield way


def _merged(turns: Sequence[Message]) -> list[Message]:
    """Join neighbours of one role, a blank line between them; leave out turns without text."""
    merged: list[Message] = []
    for turn in turns:
        if not turn.content:
            continue
        if merged and merged[-1].role == turn.role:
            turn = Message(turn.role, f"{merged.pop().content}\n\n{turn.content}")
        merged.append(turn)
    return merged


def _alternating(first: Sequence[Message], later: Sequence[Message]) -> list[Message]:
    """Return turns that begin with the user's and alternate."""
    turns = _merged([*first, *later])
    if turns and turns[0].role == "assistant":
        return [Message("user", ""), *turns]
    return turns


def _rendered(turns: Sequence[Message], tokenizer: Any) -> list[tuple[str, bool]]:
    """Render the template around marks, and put the contents in their place.

    An em space on both sides of a mark shows whether the template strips what it is given.

    Raises:
        Exception: whatever the template raises.
        ValueError: it leaves messages out.
    """
    secret = _SECRET
    while any(secret in turn.content for turn in turns):
        secret = secrets.token_hex(8)
    contents = [turn.content for turn in turns]
    chat = [
        {"role": turn.role, "content": f"\u2003{secret}{i}x\u2003" if turn.content else ""}
        for i, turn in enumerate(turns)
    ]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    pieces, end, seen = [], 0, set()
    for found in re.finditer(f"(\u2003?){secret}([0-9]+)x(\u2003?)", rendered):
        content = contents[int(found[2])]
        content = content if found[1] else content.lstrip()
        content = content if found[3] else content.rstrip()
        pieces += [(rendered[end : found.start()], False), (content, True)]
        end = found.end()
        seen.add(found[2])
    if missing := len(list(filter(None, contents))) - len(seen):
        raise ValueError(f"it left out {missing} of {len(turns)} messages")
    pieces.append((rendered[end:], False))
    return [piece for piece in pieces if piece[0]]


def _chat_ids(pieces: Sequence[tuple[str, bool]], tokenizer: Any) -> list[int]:
    """Return the ids of the whole text if its control tokens are those of the template alone, else
    the ids of each piece by itself."""
    control = _control_tokens([text for text, is_content in pieces if not is_content], tokenizer)
    template = [
        part for text, is_content in pieces if not is_content for part in _cut(text, control)
    ]
    wanted = [control[part] for part in template if part in control]
    together = _recognising(tokenizer).encode(
        "".join(text for text, _ in pieces), add_special_tokens=False
    )
    ids: list[int] = together.ids
    numbers = set(control.values())
    if [id_ for id_ in ids if id_ in numbers] == wanted:
        return ids
    ids = []
    for text, is_content in pieces:
        parts = [text] if is_content else _cut(text, control)
        for part in parts:
            is_control = part in control and not is_content
            ids += [control[part]] if is_control else _tokenise(tokenizer, part, control)
    return ids


def _control_tokens(template_texts: Sequence[str], tokenizer: Any) -> dict[str, int]:
    """Return token -> id: the special tokens, and any added token that the template writes."""
    added = tokenizer.added_tokens_decoder
    return _special_tokens(tokenizer) | {
        token.content: id_
        for id_, token in added.items()
        if not token.special and any(token.content in text for text in template_texts)
    }


_copies: "weakref.WeakKeyDictionary[Any, Tokenizer]" = weakref.WeakKeyDictionary()


def _recognising(tokenizer: Any) -> "Tokenizer":
    """Return a copy of the backend, kept with its tokenizer, that recognises special tokens."""
    from tokenizers import Tokenizer

    backend, copy = tokenizer.backend_tokenizer, _copies.get(tokenizer)
    if copy is None or copy.get_vocab_size() != backend.get_vocab_size():
        copy = Tokenizer.from_str(backend.to_str())
        copy.encode_special_tokens = False
        copy.no_truncation()
        copy.no_padding()
        _copies[tokenizer] = copy
    return copy


def _cut(text: str, control: Mapping[str, int]) -> list[str]:
    """Cut the template's text at its control tokens, which are parts of their own."""
    if not control:
        return [text]
    longest_first = sorted(control, key=len, reverse=True)
    return re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)


def _tokenise(tokenizer: Any, text: str, control: Mapping[str, int] | None = None) -> list[int]:
    """Return the ids of plain text: what looks like a control token is spelt in ordinary ones.

    `split_special_tokens` does that for byte-level BPE. T5's special tokens are pieces of its
    vocabulary too, and compatible characters normalise to them, so the ids are looked at as well.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    tokens = _special_tokens(tokenizer) if control is None else control
    special = {id_: token for token, id_ in tokens.items()}
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
