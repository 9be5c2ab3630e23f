"""Specialty of a text by keywords, for sources that name none."""

import re
from functools import cache
from pathlib import Path

from scripts.datasets.yaml_file import read_yaml

RULES = Path(__file__).with_suffix(".yaml")


@cache
def _patterns() -> dict[str, list[re.Pattern[str]]]:
    """Return specialty -> its keywords; a `*` stands for any letters."""
    return {
        specialty: [_pattern(word) for word in words]
        for specialty, words in read_yaml(RULES)["keywords"].items()
    }


@cache
def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(r"\b" + r"\w*".join(map(re.escape, word.lower().split("*"))) + r"\b")


def has_keyword(word: str, text: str) -> bool:
    """Say whether `text` has this word; a `*` stands for any letters."""
    return _pattern(word).search(text.lower()) is not None


def specialty_of(title: str, body: str = "", allowed: list[str] | None = None) -> str | None:
    """Return the specialty with the most distinct keywords in `title`, on a tie in `body` too.

    `allowed` limits the choice; empty or None allows all. Returns None without a keyword, or when
    the tie remains.
    """
    candidates = allowed or list(_patterns())
    for text in (title, f"{title} {body}"):
        counts = {
            name: sum(pattern.search(text.lower()) is not None for pattern in _patterns()[name])
            for name in candidates
        }
        best = max(counts.values())
        winners = [name for name, count in counts.items() if count == best]
        if best > 0 and len(winners) == 1:
            return winners[0]
    return None


def labelled(label: str) -> list[str] | None:
    """Return the specialties that an abstract of this condition label may belong to.

    The labels are those of Medical Abstracts. Returns None for an unknown label.
    """
    found: list[str] | None = read_yaml(RULES)["abstract_labels"].get(label)
    return found
