"""The same question as it may arrive: eight changes that leave its meaning alone.

Accents, punctuation and slips change the way training changes them (router_augmentation.py), at
other places; the courtesies and the page around a question are other sentences than training's
(router_neutral_text.py).
"""

import random
import unicodedata
from collections.abc import Callable

from scripts.router_augmentation import with_typos, without_accents, without_punctuation
from scripts.router_neutral_text import NEUTRAL, POLITE

PAGE_CHARS = 2000  # of neutral sentences around a question
Perturbation = Callable[[str, str, random.Random], str]  # (text, language, generator)


def upper_case(text: str) -> str:
    return text.upper()


def polite(text: str, lang: str, generator: random.Random) -> str:
    """Between the first and last words of a polite chat."""
    before, after = generator.choice(POLITE[_written(lang)])
    return f"{before} {text} {after}"


def within_a_page(text: str, lang: str, generator: random.Random) -> str:
    """Somewhere among about PAGE_CHARS of sentences that say nothing of any specialty."""
    sentences = list(NEUTRAL[_written(lang)])
    generator.shuffle(sentences)
    kept: list[str] = []
    while sum(len(sentence) + 1 for sentence in kept) < PAGE_CHARS and sentences:
        kept.append(sentences.pop())
    kept.insert(generator.randint(0, len(kept)), text)
    return " ".join(kept)


def as_cp1252(text: str) -> str:
    """UTF-8 that was read as Windows-1252. Bytes that it leaves undefined pass as C1 controls."""
    return "".join(_cp1252(byte) for byte in text.encode("utf-8"))


def _cp1252(byte: int) -> str:
    try:
        return bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)


def decomposed(text: str) -> str:
    """Each accent a character of its own (NFD), as some systems write file names and forms."""
    return unicodedata.normalize("NFD", text)


def _written(lang: str) -> str:
    """A language that the neutral sentences are written in."""
    return lang if lang in NEUTRAL else "en"


PERTURBATIONS: dict[str, Perturbation] = {
    "no accents": lambda text, lang, generator: without_accents(text),
    "upper case": lambda text, lang, generator: upper_case(text),
    "typos (one slip in 25 letters)": lambda text, lang, generator: with_typos(text, generator),
    "punctuation removed": lambda text, lang, generator: without_punctuation(text),
    "wrapped in polite chat": polite,
    "within a page of text": within_a_page,
    "UTF-8 read as cp1252": lambda text, lang, generator: as_cp1252(text),
    "decomposed accents": lambda text, lang, generator: decomposed(text),
}


def perturbed(text: str, lang: str, id_: str, name: str, seed: int) -> str:
    """One question under one perturbation: the same for the same id and seed."""
    return PERTURBATIONS[name](text, lang, random.Random(f"{seed}/{name}/{id_}"))
