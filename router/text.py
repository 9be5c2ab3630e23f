"""Repair a question's text, cut it into words, and detect its language.

English and French are told apart by function words and a trained score: a short question may be a
few nouns ("eczema treatment"), where function words say nothing. German, Spanish, Italian,
Portuguese and Dutch are told apart by function words that neither English nor French has. A text in
another script is undetermined.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
MAX_WORDS = 2000  # of one text; more add no signal and would cost time
# A run of letters and digits; accents may be characters of their own (decomposed Unicode).
_RUN = r"[^\W_]+(?:[\u0300-\u036f]+[^\W_]*)*"
_WORD = re.compile(rf"{_RUN}(?:['\u2019]{_RUN})*")
UNKNOWN = "und"  # ISO 639-2: undetermined
# Frequent function words without accents that are not also English or French words.
_FOREIGN: dict[str, frozenset[str]] = {
    "de": frozenset(
        "der die das und ist nicht ich wie kann mein meine was haben habe bei ein eine einen mit "
        "auf fur sie wird werden sind oder warum welche seit mir zu gegen".split()
    ),
    "es": frozenset(
        "el los las una por para con como que es mi tengo puedo cual cuales porque cuando esta "
        "hay muy pero donde hace desde tiene tratamiento sintomas".split()
    ),
    "it": frozenset(
        "il lo gli della dello che di per con come mi ho posso quali sono perche quando anche "
        "non mio mia cosa ha nel dal dell nell sintomi cura trattamento".split()
    ),
    "pt": frozenset(
        "o os as uma por para com como que meu minha tenho posso qual quais porque quando nao "
        "sao muito mas onde ha desde tem dor sintomas".split()
    ),
    "nl": frozenset(
        "de het een en is niet ik hoe kan mijn wat heb heeft bij met op voor zij wordt zijn of "
        "waarom welke sinds tegen ook wel geen".split()
    ),
}
MIN_FOREIGN_WORDS = 2
MIN_FOREIGN_SHARE = 0.25
MARGIN = 0.15  # distance of the trained probability from one half that is too small to decide


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


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text: its normal form, and its characters `start` to `end` in the original."""

    normal: str
    start: int
    end: int


def words_of(text: str) -> list[Word]:
    """Return the first MAX_WORDS words of `text`; an apostrophe splits off French articles."""
    found = []
    for match in _WORD.finditer(text):
        start = match.start()
        for part in re.split("(['\u2019])", match.group()):
            if part not in ("'", "\u2019") and part:
                found.append(Word(normalise(part), start, start + len(part)))
            start += len(part)
        if len(found) >= MAX_WORDS:
            return found[:MAX_WORDS]
    return found


def normalise(word: str) -> str:
    """Fold case, unify compatible characters and remove accents: "Œdème" -> "œdeme"."""
    if word.isascii():  # the same result, four times as fast
        return word.lower()
    decomposed = unicodedata.normalize("NFKD", word.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def detect_language(
    words: Sequence[Word],
    text: str,
    p_french: Callable[[], float],
    function_words: dict[str, frozenset[str]],
) -> str:
    """Return the text's ISO 639-1 code, or UNKNOWN.

    Args:
        words: of `text`, in normal form.
        p_french: computes the trained probability that the text is French rather than English;
            called only where the function words do not decide, since it takes longest.
        function_words: of "en" and "fr", in normal form.
    """
    letters = [c for c in text if c.isalpha()]
    latin = [c for c in letters if c.isascii() or "LATIN" in unicodedata.name(c, "")]
    has_a_word = any(len(word.normal) > 1 for word in words)  # "a" is English, French, and a typo
    if not has_a_word or len(latin) * 2 < len(letters):
        return UNKNOWN
    known = {
        code: sum(word.normal in listed for word in words)
        for code, listed in function_words.items()
    }
    foreign = {
        code: sum(word.normal in listed for word in words) for code, listed in _FOREIGN.items()
    }
    best = max(foreign, key=lambda code: foreign[code])
    if (
        foreign[best] >= MIN_FOREIGN_WORDS
        and foreign[best] > max(known.values(), default=0)
        and foreign[best] >= MIN_FOREIGN_SHARE * len(words)
    ):
        return best
    lead = known.get("fr", 0) - known.get("en", 0)
    if abs(lead) >= 2:
        return "fr" if lead > 0 else "en"
    probability = p_french()
    if abs(probability - 0.5) < MARGIN:
        return ("fr" if lead > 0 else "en") if lead else UNKNOWN
    return "fr" if probability > 0.5 else "en"
