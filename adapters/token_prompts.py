"""Token ids that a client sends as a prompt, as the text that they stand for."""

from collections.abc import Sequence
from typing import Any

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TokenIdRefused(ValueError):
    """A token id that stands for no text. `position` is its place in the prompt."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(message)
        self.position = position


def decode_prompt(token_ids: Sequence[int], *, tokenizer: Any) -> str:
    """Return the text of token ids of the base model's tokenizer.

    The tokens that mark a beginning and an end (`<s>`, `</s>`, padding) are left out at both ends,
    where tokenizers put them by themselves.

    Args:
        token_ids: from 0 up.
        tokenizer: a transformers fast tokenizer.

    Raises:
        TokenIdRefused: an id is not in the vocabulary, is a control token inside the text, or the
            ids begin or end within a character.
    """
    num_ids = len(tokenizer)
    for position, token_id in enumerate(token_ids):
        if token_id >= num_ids:
            message = (
                f"token id {token_id} is out of range: the base model's tokenizer has the ids 0 to "
                f"{num_ids - 1}; encode with that tokenizer, or send text"
            )
            raise TokenIdRefused(position, message)
    start, stop = _without_frame(token_ids, tokenizer)
    special = {id_: t.content for id_, t in tokenizer.added_tokens_decoder.items() if t.special}
    for position in range(start, stop):
        if token_ids[position] in special:
            message = (
                f"token id {token_ids[position]} is the control token "
                f"{special[token_ids[position]]!r}: the server writes the prompt's format itself; "
                "send the question's text alone"
            )
            raise TokenIdRefused(position, message)
    ids = list(token_ids[start:stop])
    text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if _REPLACEMENT in text:
        message = "the token ids do not make up whole characters: send a text's ids uncut"
        raise TokenIdRefused(start, message)
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
