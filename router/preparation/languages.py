"""Tell the language of a text.

English and French are told apart by function words and a trained score: a short question may be a
few nouns ("eczema treatment"), where function words say nothing. German, Spanish, Italian,
Portuguese and Dutch are told apart by frequent words and letters that neither English nor French
has (languages.yaml). A text in another script is undetermined.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from router.lexicon import lexicon
from router.text import Word

UNKNOWN = "und"  # ISO 639-2: undetermined
MIN_OWN_WORDS = 2  # of a foreign language, in a text of more than FEW_WORDS without MIN_LEAD
FEW_WORDS = 3
MIN_LEAD = 2  # of its words, over those of English and of French
MIN_FOREIGN_SHARE = 0.25
MARGIN = 0.15  # distance of the trained probability from one half that is too small to decide


@dataclass(frozen=True, slots=True)
class _Foreign:
    own: frozenset[str]
    shared: frozenset[str]
    letters: frozenset[str]


@cache
def _foreign() -> dict[str, _Foreign]:
    return {
        code: _Foreign(
            frozenset(entry["own"].split()),
            frozenset(entry["shared"].split()),
            frozenset(entry["letters"]),
        )
        for code, entry in lexicon("preparation/languages").items()
    }


@cache
def _known_words() -> dict[str, frozenset[str]]:
    lists = lexicon("specialties")["function_words"]
    return {code: frozenset(words.split()) for code, words in lists.items()}


def foreign_language(words: Sequence[Word], text: str) -> str | None:
    """Return the code of a language that the router does not read, if the text is in one.

    A language counts its own words and letters, and the words that it shares with English or
    French; English and French count their function words. The foreign one must lead.
    """
    normals = [word.normal for word in words]
    known = max(sum(n in listed for n in normals) for listed in _known_words().values())
    best, lead = None, 0
    for code, entry in _foreign().items():
        own = sum(n in entry.own for n in normals)
        own += MIN_OWN_WORDS * any(letter in text for letter in entry.letters)
        total = own + sum(n in entry.shared for n in normals)
        is_clear = len(normals) <= FEW_WORDS or total - known >= MIN_LEAD
        enough = 1 if is_clear else MIN_OWN_WORDS
        if own >= enough and total >= MIN_FOREIGN_SHARE * len(normals) and total - known > lead:
            best, lead = code, total - known
    return best


def is_latin(words: Sequence[Word], text: str) -> bool:
    """Return whether the text has a word of two letters, and most letters are Latin."""
    letters = [c for c in text if c.isalpha()]
    latin = [c for c in letters if c.isascii() or "LATIN" in unicodedata.name(c, "")]
    has_a_word = any(len(word.normal) > 1 for word in words)  # "a" is English, French, and a typo
    return has_a_word and len(latin) * 2 >= len(letters)


def likely_french(words: Sequence[Word]) -> bool | None:
    """Return what function words of two letters or more say; None where both have as many."""
    listed = _known_words()
    spoken = [word.normal for word in words if len(word.normal) > 1]
    lead = sum((w in listed["fr"]) - (w in listed["en"]) for w in spoken)
    return lead > 0 if lead else None


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
    if not is_latin(words, text):
        return UNKNOWN
    foreign = foreign_language(words, text)
    if foreign is not None:
        return foreign
    known = {
        code: sum(word.normal in listed for word in words)
        for code, listed in function_words.items()
    }
    lead = known.get("fr", 0) - known.get("en", 0)
    if abs(lead) >= 2:
        return "fr" if lead > 0 else "en"
    probability = p_french()
    if abs(probability - 0.5) < MARGIN:
        return ("fr" if lead > 0 else "en") if lead else UNKNOWN
    return "fr" if probability > 0.5 else "en"
