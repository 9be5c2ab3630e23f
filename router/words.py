"""The words of the texts that train the router (words.txt), for its spelling and conversations."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from router.text import normalise

WORDS = Path(__file__).with_name("words.txt")
KNOWN, EVERYDAY = "known", "everyday"  # marks of words that point to no specialty


@dataclass(frozen=True, slots=True)
class Words:
    """Words in normal form.

    Attributes:
        known: all of them.
        everyday: those of texts of all kinds; they name no topic of a clinic.
        clinical: those that point to few specialties, as they are written; most frequent first.
    """

    known: frozenset[str]
    everyday: frozenset[str]
    clinical: dict[str, str]


@cache
def words() -> Words:
    known, everyday = set(), set()
    clinical: dict[str, str] = {}
    for line in WORDS.read_text(encoding="utf-8").splitlines():
        word, _, mark = line.partition(" ")
        normal = normalise(word)
        known.add(normal)
        if mark == EVERYDAY:
            everyday.add(normal)
        elif not mark:
            clinical.setdefault(normal, word)
    return Words(frozenset(known), frozenset(everyday), clinical)
