"""A question as it was meant: broken encodings repaired, accents composed."""

import re
import unicodedata
from functools import cache

# Windows-1252 leaves five bytes undefined; programs pass them through as the C1 control characters.
_UNDEFINED = (0x81, 0x8D, 0x8F, 0x90, 0x9D)
_NON_ASCII = re.compile("[^\x00-\x7f]+")
_LOST_A_GRAVE = re.compile("\u00c3 ")  # the second half of "à" is a no-break space, often replaced
_SURROGATE = re.compile("[\ud800-\udfff]")  # halves that JSON can hold and UTF-8 cannot
# Letters, Greek, punctuation and symbols, ligatures, emoji: what may have been meant alone.
_LONE = re.compile(
    "[\u0080-\u017f\u0370-\u03ff\u2000-\u2bff\ufb00-\ufb06\ufeff\U00010000-\U0010ffff]"
)


@cache
def _byte_of() -> dict[str, int]:
    """Character -> the byte that Windows-1252 reads as it."""
    bytes_ = {chr(code): code for code in _UNDEFINED}
    for code in range(0x80, 0x100):
        if code not in _UNDEFINED:
            bytes_[bytes([code]).decode("cp1252")] = code
    return bytes_


def clean(text: str) -> str:
    """`text` with UTF-8 that was read as Windows-1252 repaired, in composed form (NFC).

    A run of characters is repaired only if its bytes are valid UTF-8, which hardly any real word
    is: "é" alone is not. The end of a French quotation, "é" with a no-break space and "»", is by
    chance: a lone character that neither language writes is no repair.
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
