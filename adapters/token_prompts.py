"""Token ids that a client sends as prompts, as the texts that they stand for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class BadTokenId:
    """Why prompt number `prompt` is not a text: the id at `position`."""

    prompt: int
    position: int
    reason: str


class _Refused(ValueError):
    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position


def decode_prompts(prompts: Sequence[Sequence[int]], *, tokenizer: Any) -> list[str] | BadTokenId:
    """Return the texts of token ids, or the first id that stands for no text.

    An id is refused that is not in the vocabulary, or is a control token inside the text; so are
    ids that begin or end within a character. The tokens that mark a beginning and an end (`<s>`,
    `</s>`, padding) are left out at both ends, where tokenizers put them by themselves.

    Args:
        prompts: ids of the base model's tokenizer, from 0 up.
        tokenizer: a transformers fast tokenizer.
    """
    texts = []
    for number, token_ids in enumerate(prompts):
        try:
            texts.append(_decoded(token_ids, tokenizer))
        except _Refused as error:
            return BadTokenId(number, error.position, str(error))
    return texts


def encode_text(prompt: str | Sequence[int], *, tokenizer: Any) -> list[int] | BadTokenId:
    """Return the ids of a text that is continued as it stands, with the mark of a beginning if the
    tokenizer puts one; ids stay as they are, if they are in the vocabulary.

    Args:
        tokenizer: a transformers fast tokenizer.
    """
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    try:
        _check_range(prompt, len(tokenizer))
    except _Refused as error:
        return BadTokenId(0, error.position, str(error))
    return list(prompt)


def _check_range(token_ids: Sequence[int], num_ids: int) -> None:
    for position, token_id in enumerate(token_ids):
        if token_id >= num_ids:
            message = (
                f"token id {token_id} is out of range: the base model's tokenizer has the ids 0 to "
                f"{num_ids - 1}; encode with that tokenizer, or send text"
            )
            raise _Refused(position, message)


def _decoded(token_ids: Sequence[int], tokenizer: Any) -> str:
    _check_range(token_ids, len(tokenizer))
    start, stop = _without_frame(token_ids, tokenizer)
    special = {id_: t.content for id_, t in tokenizer.added_tokens_decoder.items() if t.special}
    for position in range(start, stop):
        if token_ids[position] in special:
            message = (
                f"token id {token_ids[position]} is the control token "
                f"{special[token_ids[position]]!r}: the server writes the prompt's format itself; "
                "send the question's text alone"
            )
            raise _Refused(position, message)
    ids = list(token_ids[start:stop])
    text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if _REPLACEMENT in text:
        message = "the token ids do not make up whole characters: send a text's ids uncut"
        raise _Refused(start, message)
    return text


def _without_frame(token_ids: Sequence[int], tokenizer: Any) -> tuple[int, int]:
    """Return [start, stop) of what lies between the marks of beginning and end."""
    names = ("bos", "eos", "pad", "cls", "sep")
    frame = {getattr(tokenizer, f"{name}_token_id") for name in names} - {None}
    start, stop = 0, len(token_ids)
    while start < stop and token_ids[start] in frame:
        start += 1
    while start < stop and token_ids[stop - 1] in frame:
        stop -= 1
    return start, stop
