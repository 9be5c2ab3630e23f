"""Change training texts to what people write: terms put into questions, slips, courtesies, letters.

The phrases are in phrases.yaml.
"""

import random
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.datasets.yaml_file import read_yaml

PHRASES = Path(__file__).with_name("phrases.yaml")
NEIGHBOURS = {
    "a": "qsz", "b": "vgn", "c": "xvd", "d": "sfe", "e": "rzd", "f": "dgr", "g": "fht", "h": "gjy",
    "i": "uok", "j": "hkn", "k": "jli", "l": "kmo", "m": "nlp", "n": "bmh", "o": "ipl", "p": "ol",
    "q": "aw", "r": "etf", "s": "dqz", "t": "ryg", "u": "yij", "v": "cbf", "w": "xqs", "x": "wcs",
    "y": "tuh", "z": "aes",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rates:
    """How often each change is made to a training text."""

    courtesy: float = 0.12
    padding: float = 0.15
    no_accents: float = 0.15
    typos: float = 0.3
    no_punctuation: float = 0.15


def phrases(kind: str) -> Mapping[str, Sequence[Any]]:
    """Return phrases of a kind by language: "templates", "courtesies" or "padding"."""
    found: Mapping[str, Sequence[Any]] = read_yaml(PHRASES)[kind]
    return found


def as_question(term: str, lang: str, generator: random.Random) -> str:
    """Put a term into a template; in a language without templates, return the term."""
    template: str = generator.choice(phrases("templates").get(lang, ("{}",)))
    is_acronym = term[:2].isupper()
    lowered = term if is_acronym or generator.random() < 0.3 else term[:1].lower() + term[1:]
    return template.format(lowered)


def altered(text: str, lang: str, generator: random.Random, rates: Rates) -> str:
    """Make some of the changes, each at its own rate."""
    if lang in phrases("courtesies") and generator.random() < rates.courtesy:
        before, after = generator.choice(phrases("courtesies")[lang])
        text = f"{before}{text}{after}"
    if lang in phrases("padding") and generator.random() < rates.padding:
        text = padded(text, lang, generator)
    if generator.random() < rates.no_accents:
        text = without_accents(text)
    if generator.random() < rates.typos:
        text = with_typos(text, generator, generator.choice((0.02, 0.04, 0.06)))
    if generator.random() < rates.no_punctuation:
        text = without_punctuation(text)
    return text


def padded(text: str, lang: str, generator: random.Random) -> str:
    """Put the text somewhere in a letter of 2 to 16 padding sentences."""
    sentences = list(phrases("padding")[lang])
    generator.shuffle(sentences)
    sentences = sentences[: generator.choice((2, 4, 8, 16))]
    sentences.insert(generator.randint(0, len(sentences)), text)
    return " ".join(sentences)


def neutral_letters(lang: str, count: int, seed: int) -> list[str]:
    """Return different letters of 1 to 6 padding sentences: they ask nothing, so out of scope."""
    generator = random.Random(f"{seed}/{lang}")
    letters = [
        " ".join(generator.sample(phrases("padding")[lang], generator.randint(1, 6)))
        for _ in range(count)
    ]
    return list(dict.fromkeys(letters))


def without_accents(text: str) -> str:
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def without_punctuation(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]|_", " ", text).split())


def with_typos(text: str, generator: random.Random, rate: float = 0.04) -> str:
    """Make a slip in `rate` of the letters, at least one: drop, double, swap, neighbouring key.

    A text of fewer than four letters is returned as it is.
    """
    places = [i for i, c in enumerate(text) if c.isalpha()]
    if len(places) < 4:
        return text
    letters = list(text)
    for place in generator.sample(places, k=max(1, round(rate * len(places)))):
        letter = letters[place]
        kind = generator.randrange(4)
        if kind == 0:
            letters[place] = ""
        elif kind == 1:
            letters[place] = letter * 2
        elif kind == 2 and place + 1 < len(letters):
            letters[place], letters[place + 1] = letters[place + 1], letter
        else:
            letters[place] = generator.choice(NEIGHBOURS.get(letter.lower(), letter))
    return "".join(letters)
