"""Specialty of a text by keywords, for sources that name none."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).with_suffix(".yaml")


@cache
def _rules() -> dict[str, Any]:
    rules: dict[str, Any] = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return rules


@cache
def _patterns() -> dict[str, list[re.Pattern[str]]]:
    return {
        specialty: [_pattern(word) for word in words]
        for specialty, words in _rules()["keywords"].items()
    }


def _pattern(keyword: str) -> re.Pattern[str]:
    return re.compile(r"\b" + r"\w*".join(map(re.escape, keyword.split("*"))) + r"\b")


def specialty_of(title: str, body: str = "", allowed: list[str] | None = None) -> str | None:
    """Return the specialty with the most distinct keywords in `title`, on a tie in `body` too.

    `allowed` limits the choice; empty or None allows all. Returns None without a keyword, or when
    the tie remains.
    """
    candidates = allowed or list(_patterns())
    for text in (title, f"{title} {body}"):
        counts = {name: _hits(name, text.lower()) for name in candidates}
        best = max(counts.values())
        winners = [name for name, count in counts.items() if count == best]
        if best > 0 and len(winners) == 1:
            return winners[0]
    return None


def _hits(specialty: str, text: str) -> int:
    return sum(pattern.search(text) is not None for pattern in _patterns()[specialty])


def labelled(label: str) -> list[str] | None:
    """Return the specialties that an abstract of this condition label may belong to.

    The labels are those of Medical Abstracts. Returns None for an unknown label.
    """
    found: list[str] | None = _rules()["abstract_labels"].get(label)
    return found
