"""Detect the language of a question: English or French by a trained score, others by words.

A short question may be a few nouns ("eczema treatment"), where function words say nothing and the
trained score decides. German, Spanish, Italian, Portuguese and Dutch are told apart by function
words that neither English nor French has. A text in another script is undetermined.
"""

import unicodedata
from collections.abc import Callable, Sequence

from router.features import Word

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


def detect(
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
