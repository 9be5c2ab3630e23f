"""Leave out what tells the router where to go: the patient's words decide.

Assignments of the router's own fields in any notation ("specialty=cardiology"), and orders to it
("route to oncology"), are no evidence. Their words are in orders.yaml.
"""

import re
from functools import cache

from router.lexicon import alternatives, lexicon
from router.preparation.edited import Edit, EditedText
from router.text import folded

_OPEN, _CLOSE = r"""["'`<\[{(*_#-]{0,6}""", r"""["'`>\]})*_,;]{0,6}"""
_ARTICLE = r"(?:(?:the|a|an|le|la|les|l'|un|une|au|aux|en)\s*)?"
_NUMBER = r"(?:[\d.,]+\s*%?|true|high|max\w*)"
_GAP = r"[^.!?\n]{0,40}"  # words of the same sentence


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    word = {name: alternatives(content) for name, content in lexicon("preparation/orders").items()}
    specialty = rf"{word['specialties']}\b"

    def assigned(field: str, value: str) -> str:
        named = rf"{_OPEN}\b{word[field]}\b{_CLOSE}\s*{word['operators']}\s*{_OPEN}\s*"
        return rf"{named}{value}(?:</{word[field]}>)?{_CLOSE}"

    sent = rf"(?:{word['router_verbs']}\b|{word['verbs']} (?:\w+ )?{word['objects']}\b)"
    return tuple(
        re.compile(pattern)
        for pattern in (
            assigned("own_fields", _ARTICLE + r"[\w./-]+"),
            assigned("fields", _ARTICLE + specialty),
            assigned("number_fields", _NUMBER),
            r"\b(?:system|assistant|developer)\b\s*(?:prompt|message|override)?\s*[\])>]*\s*[:>]+",
            rf"\b{word['forget']}\b{_GAP}\b{word['rules']}\b",
            rf"\b{sent}{_GAP}\b{word['towards']}\s*{_ARTICLE}{specialty}(?: {word['played']})?",
            rf"\b{word['roles']}\b{_GAP}{specialty}",
        )
    )


def without_orders(text: EditedText) -> EditedText:
    """Return the text without orders to the router and assignments of its fields."""
    searched = folded(text.text)
    return text.apply(
        Edit(match.start(), match.end(), " ")
        for pattern in _patterns()
        for match in pattern.finditer(searched)
    )
