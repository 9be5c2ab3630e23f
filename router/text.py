"""Repair a question's text: broken encodings, and accents as separate characters."""

import re
import unicodedata
from functools import cache

# Windows-1252 leaves five bytes undefined; programs pass them on as C1 control characters.
_UNDEFINED = (0x81, 0x8D, 0x8F, 0x90, 0x9D)
_NON_ASCII = re.compile("[^\x00-\x7f]+")
_LOST_A_GRAVE = re.compile("\u00c3 ")  # the second half of "à" is a no-break space, often replaced
_SURROGATE = re.compile("[\ud800-\udfff]")  # halves that JSON can hold and UTF-8 cannot
# Letters, Greek, punctuation, symbols, ligatures, emoji: a single one of these may be meant.
_LONE = re.compile(
    "[\u0080-\u017f\u0370-\u03ff\u2000-\u2bff\ufb00-\ufb06\ufeff\U00010000-\U0010ffff]"
)


@cache
def _byte_of() -> dict[str, int]:
    """Return, by character, the byte that Windows-1252 reads as it."""
    bytes_ = {chr(code): code for code in _UNDEFINED}
    for code in range(0x80, 0x100):
        if code not in _UNDEFINED:
            bytes_[bytes([code]).decode("cp1252")] = code
    return bytes_


def clean(text: str) -> str:
    """Return `text` in composed form (NFC), with UTF-8 that was read as Windows-1252 repaired.

    A run of characters is repaired only if its bytes are valid UTF-8, which those of hardly any
    real word are: "é" alone is not. The end of a French quotation ("é", a no-break space, "»") is
    valid UTF-8 by chance, so a result of one character that neither language uses is not taken.
    """
    if text.isascii():
        return text
    text = _SURROGATE.sub("\ufffd", text)
    text = _LOST_A_GRAVE.sub("\u00c3\u00a0", text)
    return unicodedata.normalize("NFC", _NON_ASCII.sub(_repaired, text))


def _repaired(run: re.Match[str]) -> str:
    table = _byte_of()
    try:
        found = bytes(table[character] for character in run.group()).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return run.group()
    return found if len(found) > 1 or _LONE.fullmatch(found) else run.group()
