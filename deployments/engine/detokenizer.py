"""The text of token ids, for every kind of tokenizer: without special tokens, and such that more
tokens never change what stands before them, but for a last unfinished character.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

Decode = Callable[[Sequence[int]], str]


def hidden_ids(tokenizer: Any) -> frozenset[int]:
    """Return the special tokens of a transformers tokenizer, which are no text."""
    added = tokenizer.added_tokens_decoder
    return frozenset(id_ for id_, token in added.items() if token.special)


def text_decoder(tokenizer: Any) -> Decode:
    """Return a function from token ids to text, without special tokens and tidying of spaces.

    Where a run of byte tokens (`<0xE2>`) is no valid UTF-8, `tokenizers` turns all of it into
    U+FFFD, characters that were whole as well: a later token would change text that has left. So
    the text of tokenizers with byte tokens is put together here, and only bad bytes are U+FFFD.
    """
    steps = _byte_fallback(tokenizer)
    if steps is None:
        return lambda ids: str(
            tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
    replacements, stripped = steps
    hidden, known = hidden_ids(tokenizer), dict[int, bytes]()

    def piece(id_: int) -> bytes:
        token = None if id_ in hidden else tokenizer.backend_tokenizer.id_to_token(id_)
        for old, new in replacements:
            token = token and token.replace(old, new)
        known[id_] = found = _bytes_of(token or "")
        return found

    def decode(ids: Sequence[int]) -> str:
        pieces = [known[id_] if id_ in known else piece(id_) for id_ in ids]
        text = b"".join(pieces).decode("utf-8", errors="replace")
        for start in stripped:
            text = text.removeprefix(start)
        return text

    return decode


def token_bytes(tokenizer: Any) -> Callable[[int], bytes]:
    """Return a function from a token's id to the bytes that it stands for, in the middle of a text;
    a special token's are its name, and an id that the tokenizer does not have stands for none.

    A slow tokenizer's are those of the token decoded alone.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda id_: str(tokenizer.decode([id_])).encode()
    added = {id_: token.content.encode() for id_, token in tokenizer.added_tokens_decoder.items()}
    is_byte_level = backend.decoder is not None and b"ByteLevel" in backend.decoder.__getstate__()
    bytes_by_letter = _letters_of_bytes() if is_byte_level else {}

    def data_of(id_: int) -> bytes:
        token: str | None = backend.id_to_token(id_)
        if id_ in added or token is None:
            return bytes(added.get(id_, b""))
        if not is_byte_level:
            return _bytes_of(token.replace("\N{LOWER ONE EIGHTH BLOCK}", " "))
        pieces = (bytes_by_letter.get(letter) or letter.encode() for letter in token)
        return b"".join(pieces)

    return functools.lru_cache(1 << 16)(data_of)


def _letters_of_bytes() -> dict[str, bytes]:
    """Return how byte-level tokenizers write each byte: printable Latin-1 as it is, others as the
    letters from U+0100 up (GPT-2's bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): bytes([byte]) for byte in printable}
    return letters | {chr(256 + n): bytes([byte]) for n, byte in enumerate(others)}


def _byte_fallback(tokenizer: Any) -> tuple[list[tuple[str, str]], list[str]] | None:
    """Return the replacements in each token, and the prefixes that a text loses.

    None: the tokenizer has no byte tokens, or further steps that this module does not know.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return None
    state = json.loads(backend.decoder.__getstate__())
    steps = state.get("decoders", [])
    kinds = [step["type"] for step in steps]
    if "ByteFallback" not in kinds:
        return None
    at = kinds.index("ByteFallback")
    if set(kinds[:at]) - {"Replace"} or kinds[at + 1 : at + 2] != ["Fuse"]:
        return None
    if any("String" not in step["pattern"] for step in steps[:at]):
        return None
    after = steps[at + 2 :]
    if any(step["type"] != "Strip" or step["stop"] for step in after):
        return None
    replacements = [(step["pattern"]["String"], step["content"]) for step in steps[:at]]
    return replacements, [step["content"] for step in after for _ in range(step["start"])]


def _bytes_of(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.encode()
