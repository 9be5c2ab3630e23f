"""Repair a question's text, and cut it into words."""

import re
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache

# Windows-1252 leaves five bytes undefined; programs pass them on as C1 control characters.
_UNDEFINED = (0x81, 0x8D, 0x8F, 0x90, 0x9D)
_NON_ASCII = re.compile("[^\x00-\x7f]+")
_LOST_A_GRAVE = re.compile("\u00c3 ")  # the second half of "à" is a no-break space, often replaced
_SURROGATE = re.compile("[\ud800-\udfff]")  # halves that JSON can hold and UTF-8 cannot
# Letters, Greek, punctuation, symbols, ligatures, emoji: a single one of these may be meant.
_LONE = re.compile(
    "[\u0080-\u017f\u0370-\u03ff\u2000-\u2bff\ufb00-\ufb06\ufeff\U00010000-\U0010ffff]"
)
MAX_WORDS = 2000  # of one text; more add no signal and would cost time
# A run of letters and digits; accents may be characters of their own (decomposed Unicode).
_RUN = r"[^\W_]+(?:[\u0300-\u036f]+[^\W_]*)*"
_APOSTROPHE = re.compile("(['\u2019])")
_WORD = re.compile(rf"{_RUN}(?:['\u2019]{_RUN})*")
# Joiners, soft hyphens, zero-width blanks, byte order marks, and marks of the writing direction.
_INVISIBLE = re.compile(
    "[\u00ad\u180e\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
    "|(?<=\\w)\u200d(?=\\w)"  # between letters; in an emoji it has a meaning
)
# Full-width and mathematical letters, and the ligatures of printed text.
_STYLED = re.compile("[\uff01-\uff5e\U0001d400-\U0001d7ff\ufb00-\ufb06]+")
_HYPHEN = re.compile("[\u2010\u2011]")
_GREEK_OR_CYRILLIC = re.compile("[\u0370-\u03ff\u0400-\u052f]")
_LATIN = re.compile("[A-Za-z]")
_LOOK_ALIKE = str.maketrans(  # Cyrillic, then Greek
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0455\u0458\u0501\u0410\u0412\u0415\u041a\u041c"
    "\u041d\u041e\u0420\u0421\u0422\u0425\u0406\u0405\u03bf\u0391\u0392\u0395\u0396\u0397\u0399\u039a"
    "\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7",
    "aeopcyxisjdABEKMHOPCTXISoABEZHIKMNOPTYX",
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
    """Return `text` in composed form (NFC), with what programs do to its letters undone.

    UTF-8 that was read as Windows-1252 is repaired, invisible characters go, styled letters,
    ligatures and hyphens become plain ones, and letters of another alphabet that look like Latin
    ones become Latin in a word that has Latin letters too.

    A run of characters is repaired only if its bytes are valid UTF-8, which those of hardly any
    real word are: "é" alone is not. The end of a French quotation ("é", a no-break space, "»") is
    valid UTF-8 by chance, so a result of one character that neither language uses is not taken.
    """
    if text.isascii():
        return text
    text = _SURROGATE.sub("\ufffd", text)
    text = _LOST_A_GRAVE.sub("\u00c3\u00a0", text)
    text = _INVISIBLE.sub("", _NON_ASCII.sub(_repaired, text))
    text = _STYLED.sub(lambda run: unicodedata.normalize("NFKC", run.group()), text)
    if _GREEK_OR_CYRILLIC.search(text):
        text = re.sub(r"\w+", _in_one_alphabet, text)
    return unicodedata.normalize("NFC", _HYPHEN.sub("-", text))


def _repaired(run: re.Match[str]) -> str:
    table = _byte_of()
    try:
        found = bytes(table[character] for character in run.group()).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return run.group()
    return found if len(found) > 1 or _LONE.fullmatch(found) else run.group()


def _in_one_alphabet(word: re.Match[str]) -> str:
    return word.group().translate(_LOOK_ALIKE) if _LATIN.search(word.group()) else word.group()


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text: its normal form, and its characters `start` to `end` in the original."""

    normal: str
    start: int
    end: int


def words_of(text: str) -> list[Word]:
    """Return the first MAX_WORDS words of `text`; an apostrophe splits off French articles."""
    return list(_words_of(text))


@lru_cache(maxsize=64)  # the steps that prepare a text ask for its words again and again
def _words_of(text: str) -> tuple[Word, ...]:
    found: list[Word] = []
    for match in _WORD.finditer(text):
        start = match.start()
        for part in _APOSTROPHE.split(match.group()):
            if part not in ("'", "\u2019") and part:
                found.append(Word(normalise(part), start, start + len(part)))
            start += len(part)
        if len(found) >= MAX_WORDS:
            return tuple(found[:MAX_WORDS])
    return tuple(found)


def normalise(word: str) -> str:
    """Fold case, unify compatible characters and remove accents: "Œdème" -> "œdeme"."""
    if word.isascii():  # the same result, four times as fast
        return word.lower()
    decomposed = unicodedata.normalize("NFKD", word.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def folded(text: str) -> str:
    """Return the text in lower case without accents, and character by character as long."""
    if text.isascii():
        return text.lower()
    return "".join(_folded(character) for character in text)


@lru_cache(maxsize=4096)
def _folded(character: str) -> str:
    if character in "\u2018\u2019":
        return "'"
    base = unicodedata.normalize("NFD", character.lower())[0]
    return base if len(base) == 1 else character
