"""Put the clinical name behind what people say instead of it (expressions.yaml)."""

import re
from functools import cache

from router.lexicon import lexicon
from router.preparation.edited import Edit, EditedText
from router.text import folded

MAX_CHARS = 4000  # of a text that is searched


@cache
def _expressions() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(e["say"]), e["means"]) for e in lexicon("preparation/expressions"))


def name_expressions(text: EditedText) -> EditedText:
    """Return the text with the clinical name after each expression, unless it is there already."""
    searched = folded(text.text[:MAX_CHARS])
    return text.apply(
        Edit(m.start(), m.end(), f"{text.text[m.start() : m.end()]} ({means})")
        for pattern, means in _expressions()
        if means not in text.text
        for m in pattern.finditer(searched)
    )
