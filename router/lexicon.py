"""Read the word lists that lie beside the code (*.yaml), and find words in them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent
ANY_ENDING = "*"


@cache
def lexicon(name: str) -> Any:
    """Return the content of `router/{name}.yaml`, which nobody may change."""
    with (FOLDER / f"{name}.yaml").open(encoding="utf-8") as file:
        return yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@dataclass(frozen=True, slots=True)
class WordList:
    """Words in normal form, and beginnings of words."""

    words: frozenset[str]
    beginnings: tuple[str, ...]

    @classmethod
    def of(cls, *entries: str) -> "WordList":
        """Read words between blanks or apostrophes; ANY_ENDING at the end stands for all."""
        listed = [word for entry in entries for word in entry.replace("'", " ").split()]
        return cls(
            frozenset(word for word in listed if not word.endswith(ANY_ENDING)),
            tuple(sorted({w[: -len(ANY_ENDING)] for w in listed if w.endswith(ANY_ENDING)})),
        )

    def __contains__(self, word: str) -> bool:
        return word in self.words or word.startswith(self.beginnings)


def alternatives(listed: str) -> str:
    """Return a group that matches one of the regular expressions between " | "."""
    return "(?:" + "|".join(part.strip() for part in listed.split(" | ")) + ")"


def by_language(entry: Mapping[str, str] | str) -> Iterable[str]:
    """Return the texts of an entry that is one text, or one for each language."""
    return (entry,) if isinstance(entry, str) else entry.values()
