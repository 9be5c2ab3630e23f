"""Write out clinical abbreviations and the shorthand of notes (abbreviations.yaml).

"58M c/o CP rad to L arm" becomes "58-year-old man complains of chest pain radiating to left arm".
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from router.lexicon import lexicon
from router.preparation.edited import Edit, EditedText
from router.preparation.languages import likely_french
from router.text import Word, normalise, words_of

CASELESS_LENGTH = 3  # a shorter abbreviation, or an everyday word, counts in its own case only
SHOUTED_SHARE = 0.7  # of the letters are capitals: case tells nothing
SHOUTED_LETTERS = 12
_DOTTED = re.compile(r"(?<![\w.])(?:[^\W\d_]\.){1,5}[^\W\d_](?:\.(?!\w)|(?![\w.]))")
_PLACES_EN = (
    "arm|leg|hand|foot|knee|hip|shoulder|eye|ear|side|flank|chest|ankle|wrist|elbow|lung"
    "|breast|calf|thigh|groin|kidney|testicle|ovary|lower|upper|sided?|facial|face|UE|LE"
)
_PLACES_FR = (
    "bras|jambe|main|pied|genou|hanche|épaule|oeil|œil|oreille|côté|flanc|cheville"
    "|poignet|coude|poumon|sein|mollet|cuisse|rein|testicule|ovaire|fosse lombaire"
)
_SIDES = {"L": "left", "R": "right", "G": "gauche", "D": "droit"}
_SIDE_EN = re.compile(rf"\b([LR])(?=\s+(?:{_PLACES_EN})\b)")
# A small d is what an apostrophe left: "genou d un enfant".
_AFTER_PLACE_FR = re.compile(rf"\b(?i:{_PLACES_FR})\s+([GgD])(?![\w'\u2019])")
_AGE = r"(?P<age>1[01]\d|\d{1,2})"
_UNIT = r"(?:y/?o?|yrs?|a|ans)?\.?"
_AGE_SEX = re.compile(
    rf"(?:^|(?<=[.;:,\n(]))(\s*){_AGE}\s?{_UNIT}\s?(?P<sex>[MFHW])\b(?![.'\u2019])"
)
_SEX_AGE = re.compile(rf"(?:^|(?<=[.;:,\n(]))(\s*)(?P<sex>[MFH])[\s,]*{_AGE}\s?{_UNIT}(?!\w)")
_SEXES = {
    False: {"M": "man", "H": "man", "F": "woman", "W": "woman"},
    True: {"M": "homme", "H": "homme", "F": "femme", "W": "femme"},
}
_SPANS = {"d": "days", "/7": "days", "w": "weeks", "/52": "weeks", "m": "months", "/12": "months"}
_CANDIDATE = re.compile(
    r"(?<!\w)(?:[Rr]ad to|[Cc]-section|[A-Za-z\d]{1,8}(?:/[A-Za-z\d]{0,3}){0,2})(?!\w)"
)
_FOR_DAYS = re.compile(r"\bx\s?(\d{1,3})\s?(d|/7|wk|w|/52|mo|/12)s?\b")


@dataclass(frozen=True, slots=True)
class Sense:
    """What an abbreviation stands for in a language, in the company of words (beginnings)."""

    short: str
    language: str
    long: str
    company: tuple[str, ...]
    is_caseless: bool
    is_international: bool  # used in both languages


@cache
def senses() -> dict[str, tuple[Sense, ...]]:
    """Return the senses of each abbreviation, by its form in lower case."""
    found: dict[str, list[Sense]] = {}
    for entry in lexicon("preparation/abbreviations"):
        short = entry["short"]
        long_enough = len(short) >= CASELESS_LENGTH and not entry.get("word", False)
        sense = Sense(
            short,
            entry["lang"],
            entry["long"],
            tuple(entry.get("with", ())),
            long_enough or entry.get("any", False),
            entry.get("both", False),
        )
        found.setdefault(short.lower(), []).append(sense)
    return {key: tuple(listed) for key, listed in found.items()}


def _candidates(text: str) -> Iterator[tuple[int, str]]:
    """Yield (start, characters) of what may be an abbreviation: "c/o" as one, "HTA/AVC" as two."""
    for match in _CANDIDATE.finditer(text):
        if _listed(match.group()):
            yield match.start(), match.group()
            continue
        start = match.start()
        for part in match.group().split("/"):
            if _listed(part):
                yield start, part
            start += len(part) + 1


def _listed(written: str) -> tuple[Sense, ...]:
    """Return the senses of an abbreviation, which may be in the plural."""
    key = written.lower()
    return senses().get(key) or senses().get(key.removesuffix("s"), ())


def expand(text: EditedText) -> EditedText:
    """Return the text with abbreviations, ages, sides and durations written out."""
    text = text.apply(
        Edit(found.start(), found.end(), found.group().replace(".", ""))
        for found in _DOTTED.finditer(text.text)
        if found.group().replace(".", "").lower() in senses()
    )
    words, shouted = words_of(text.text), is_shouted(text.text)
    candidates = list(_candidates(text.text))
    spelt = [w for w in words if shouted or not text.text[w.start : w.end].isupper()]  # "SI"
    is_french = likely_french(spelt)
    if is_french is None:
        is_french = _language_of(written for _, written in candidates)
    edits = [*_ages(text.text, is_french), *_notes(text.text)]
    for start, written in candidates:
        sense = _sense(written, words, is_french, shouted)
        if sense is not None:
            edits.append(Edit(start, start + len(written), sense.long))
    return text.apply(edits)


def _language_of(written: Iterable[str]) -> bool | None:
    """Return whether more abbreviations are French only than English only; None for a tie."""
    lead = 0
    for short in written:
        languages = {sense.language for sense in senses().get(short.lower(), ())}
        lead += (languages == {"fr"}) - (languages == {"en"})
    return lead > 0 if lead else None


def is_shouted(text: str) -> bool:
    """Return whether a text of some length is in capitals."""
    letters = [c for c in text if c.isalpha()]
    capitals = sum(c.isupper() for c in letters)
    return len(letters) >= SHOUTED_LETTERS and capitals >= SHOUTED_SHARE * len(letters)


def _sense(
    written: str, words: Sequence[Word], is_french: bool | None, shouted: bool
) -> Sense | None:
    """Return what `written` stands for here, or None where it is an everyday word."""
    stem = written if written.lower() in senses() else written[:-1]
    spoken = {True: "fr", False: "en", None: ""}[is_french]
    fits = [
        sense
        for sense in _listed(written)
        if (sense.is_international or not spoken or sense.language == spoken)
        and (sense.is_caseless or (stem == sense.short and (not shouted or sense.company)))
    ]
    own = normalise(written)
    others = [word.normal for word in words if word.normal != own]
    for sense in fits:
        if sense.company and any(other.startswith(sense.company) for other in others):
            return sense
    return next((sense for sense in fits if not sense.company), None)


def _ages(text: str, is_french: bool | None) -> list[Edit]:
    """Return the edits that write out "58M" or "F 45" at the beginning of a sentence."""
    edits = []
    for pattern in (_AGE_SEX, _SEX_AGE):
        for match in pattern.finditer(text):
            french = match["sex"] == "H" or (is_french is True)
            who = _SEXES[french][match["sex"]]
            long = f"{who} de {match['age']} ans" if french else f"{match['age']}-year-old {who}"
            edits.append(Edit(match.end(1), match.end(), long))
    return edits


def _notes(text: str) -> list[Edit]:
    """Return the edits that write out sides ("L arm", "bras G") and durations ("x3d")."""
    edits = [Edit(m.start(), m.end(), _SIDES[m.group()]) for m in _SIDE_EN.finditer(text)]
    for match in _AFTER_PLACE_FR.finditer(text):
        edits.append(Edit(match.start(1), match.end(1), _SIDES[match[1].upper()]))
    for match in _FOR_DAYS.finditer(text):
        span = _SPANS[match[2] if match[2].startswith("/") else match[2][0]]
        edits.append(Edit(match.start(), match.end(), f"for {match[1]} {span}"))
    return edits
