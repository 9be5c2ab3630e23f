"""Words, stems and sentences of English and French texts."""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

_WORD = re.compile(r"[^\W_]+")
# A sentence ends at . ! ? or an ellipsis before a space and a capital, a digit or a quotation
# mark, and at a line's end.
_END = re.compile(
    r"(?<=[.!?\u2026])[\"'\u00bb)\]]*(?:\s*\[\d+\])*"
    r"(?=\s+(?!\[\d+\])[\"'\u00ab(\[]?\s?[A-Z\u00c0-\u00dd0-9])|\n+"
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:e\.g|i\.e|cf|vs|approx|fig|dr|mr|mrs|ms|st|no|ex|p|pp|env|etc|[A-Z])\.$|^\s*\d+\.$",
    re.I,
)
_LIGATURES = str.maketrans({"œ": "oe", "æ": "ae", "Œ": "OE", "Æ": "AE", "ß": "ss", "’": "'"})
ROMAN = {"ii": "2", "iii": "3", "iv": "4", "vi": "6", "vii": "7", "viii": "8", "ix": "9"}
# Words that say nothing about the topic, without accents: of the language, and of any question.
ENGLISH = frozenset(
    """a about above after again all also always am an and any are as at be because been before
    being below between both but by can cannot could did do does doing don done down during each
    either every few for from further get gets getting give go goes going got had has have having
    he her here hers him his how however i if in into is it its just keep keeps know let like ll
    look looks made make makes many may me might mine more most much my myself need no nor not now
    of off often on once one only or other our out over own perhaps please really re s same seem
    seems she should since so some someone something sometimes such t take tell than that the their
    them then there these they thing things this those though through to too under until up us use
    used ve very want was way we well were what when where whether which while who whom whose why
    will with without would yet you your yours d m im ive thats whats called name word explain mean
    means meaning describe define definition question answer help does anyone people person patient
    patients someone anybody condition doctor says said feel feels feeling day days week weeks
    month months year years old ever""".split()
)
FRENCH = frozenset(
    """a ai aie aient ainsi alors as au aucun aussi autre autres aux avait avant avec avez avoir
    avons c ca car ce cela celle celui ces cet cette ceux chez comme comment d dans de depuis des
    deux dit dois doit donc dont du elle elles en encore entre es est et etaient etait ete etes
    etre eu eux fait faire fais font faut il ils j je jusque l la là le les leur leurs lors lorsque
    lui m ma mais me meme memes mes mieux moi moins mon n ne ni nos notre nous on ont ou où par
    parce parfois pas pendant peu peut peuvent peux plus plusieurs pour pourquoi pouvez puis qu
    quand que quel quelle quelles quels qui quoi s sa sans se sera ses si sinon soi soit son sont
    souvent suis sur t ta te tes toi ton toujours tous tout toute toutes tres trop tu un une va
    vers veut vos votre vous y qu'est appelle signifie veut dire definition definir expliquez
    explique expliquer sens aide bonjour merci svp docteur medecin patient patiente patients gens
    personne personnes jour jours semaine semaines mois an ans annee annees chose truc quelqu
    quelque quelques aller vais parler savoir sait connaitre nomme nom c'est etc ci cela lequel
    laquelle present presente presenter semble autour devient deviennent devenir devenu
    devenus beaucoup fils mari frere soeur fois
    rien lors tellement vraiment assez""".split()
)
_POLITE = frozenset(("plait",))  # of questions alone: no text is cut anew for it
# What a question asks about a topic: it ranks, and does not have to be in the passage.
ASPECTS = frozenset(
    """sign signs symptom symptoms treatment treat treated cure cause causes caused diagnosis
    diagnosed disease diseases disorder disorders illness syndrome problem problems
    signe signes symptome symptomes traitement traiter traite soigner soigne cause causes
    provoque diagnostic maladie maladies trouble troubles probleme problemes
    enfant enfants garcon garcons fille filles homme hommes femme femmes adulte adultes""".split()
)
SIGN_ASPECTS = frozenset(
    """sign signs symptom symptoms feature features manifestation manifestations signe signes
    symptome symptomes manifestation manifestations""".split()
)


def fold(text: str) -> str:
    """Return `text` in lower case, without accents and ligatures."""
    if text.isascii():
        return text.lower()
    parts = unicodedata.normalize("NFKD", text.translate(_LIGATURES))
    return "".join(c for c in parts if not unicodedata.combining(c)).lower()


def plain(text: str) -> str:
    """Return `text` in lower case, without accents, apostrophes straight; no character moves."""
    return "".join(
        "'" if c == "\u2019" else unicodedata.normalize("NFD", c.lower())[0] for c in text
    )


def words(text: str) -> list[str]:
    """Return the words of `text`, folded."""
    return _WORD.findall(fold(text))


@cache
def _stemmer(language: str) -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer("french" if language == "fr" else "english")


@lru_cache(maxsize=100_000)
def stem(word: str, language: str = "en") -> str:
    """Return the Snowball stem of a folded word; a Roman number from II to IX is a digit."""
    if word in ROMAN:
        return ROMAN[word]
    return str(_stemmer(language).stemWord(word))


def root(word: str, language: str = "en") -> str:
    """Return the stem of a folded word; in French without e of participles and x of plurals.

    The French stemmer reads accents, which folding has removed: "enflamme" and "enflammee".
    """
    found = stem(word, language)
    if language != "fr" or len(found) < 5:
        return found
    return found[:-1] if found.endswith(("eux", "aux")) else found.rstrip("e")


def stems(text: str, language: str = "en") -> list[str]:
    """Return the stems of `text`, in order, function words left out."""
    empty = FRENCH if language == "fr" else ENGLISH
    return [stem(word, language) for word in words(text) if word not in empty]


def french(found: str) -> str:
    """Return a French stem of an English passage's names, which no English question shall meet.

    "Os fragiles" are bones, and "fragile hair" is none.
    """
    return f"zfr{found}"


def name_key(name: str, language: str = "en") -> str:
    """Return what two ways to write one name share: its stems without function words, sorted.

    "Dilated cardiomyopathy 1A" and "Cardiomyopathy, dilated, 1A" have one key.
    """
    return key_of(stems(name, language))


def key_of(found: Iterable[str]) -> str:
    """Return the name key of stems."""
    return " ".join(sorted(set(found) - {"type"}))


def _function_counts(text: str) -> tuple[int, int]:
    """Return how many words of a text only French has as function words, and only English."""
    found = words(text)
    french = sum(word in FRENCH and word not in ENGLISH for word in found)
    return french, sum(word in ENGLISH and word not in FRENCH for word in found)


def guess_language(text: str) -> str:
    """Return fr if `text` has more French function words than English ones, or accents; else en."""
    return languages(text)[0]


def languages(text: str) -> tuple[str, ...]:
    """Return the language of a text, or both where nothing tells: "mucoviscidose"."""
    french, english = _function_counts(text)
    if french != english:
        return ("fr",) if french > english else ("en",)
    accents = any(c in "àâçéèêëîïôûùœ" for c in text.lower())
    return ("fr",) if accents else ("en", "fr")


def function_words(text: str, language: str) -> frozenset[str]:
    """Return what says nothing in a question, in its language; in both where both are spoken."""
    if all(_function_counts(text)):
        return FRENCH | ENGLISH | _POLITE
    return (FRENCH if language == "fr" else ENGLISH) | _POLITE


def sentences(text: str) -> list[tuple[int, int]]:
    """Return start and end of each sentence, without the blanks around it.

    Markers such as [1] after the full stop belong to the sentence before them.
    """
    ends, start = [], 0
    for match in _END.finditer(text):
        at = match.end()
        if not match[0].startswith("\n") and _ABBREVIATION.search(text[start : match.start()]):
            continue
        ends.append((start, at))
        start = at
    ends.append((start, len(text)))
    return [span for span in (_trimmed(text, *end) for end in ends) if span[0] < span[1]]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    inside = text[start:end]
    left = len(inside) - len(inside.lstrip())
    return start + left, start + max(left, len(inside.rstrip()))
