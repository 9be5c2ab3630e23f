"""Leave out symptoms that a text denies: "No chest pain, no dyspnoea. Knee pain" is about a knee.

After NegEx (Chapman et al. 2001): a trigger denies what follows it, to the end of the clause or a
word that ends it. What is denied goes only if the rest of the text says what it is about, and to be
without a function of the body ("no appetite") is a complaint, so it stays (denials.yaml).
"""

import re
from functools import cache

from router.lexicon import WordList, lexicon
from router.preparation.edited import Edit, EditedText
from router.text import folded, words_of

MAX_WORDS = 12  # that one trigger denies
_CLAUSE_END = re.compile(r"[.;:!?\n()]")
_LIST_ENDS = re.compile(r"\b(?:or|nor|and|ni|ou|et)\b")


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], WordList]:
    content = lexicon("preparation/denials")
    triggers, ends = (
        "|".join(
            re.escape(phrase) + ("" if phrase.endswith("'") else r"\b")
            for phrase in sorted((p.strip() for p in content[name].split("|")), key=len)[::-1]
        )
        for name in ("triggers", "ends")
    )
    return (
        re.compile(rf"(?<![\w'])(?:{triggers})"),
        re.compile(rf"(?<![\w'])(?:{ends})"),
        WordList.of(content["functions"]),
    )


def denied_spans(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of each denial in a text, trigger and all."""
    triggers, ends, functions = _patterns()
    searched = folded(text)
    spans: list[tuple[int, int]] = []
    for trigger in triggers.finditer(searched):
        if spans and trigger.start() < spans[-1][1]:
            continue
        end = _end_of_denial(searched, trigger.end(), ends)
        denied = words_of(searched[trigger.end() : end])
        if denied and not any(word.normal in functions for word in denied[:3]):
            spans.append((trigger.start(), end))
    return spans


def _end_of_denial(text: str, start: int, ends: re.Pattern[str]) -> int:
    """Return where the denial ends: at the clause, a word that ends it, or a comma of no list."""
    clause = _CLAUSE_END.search(text, start)
    end = clause.start() if clause else len(text)
    word = ends.search(text, start, end)
    end = word.start() if word else end
    words = words_of(text[start:end])
    if len(words) > MAX_WORDS:
        end = start + words[MAX_WORDS - 1].end
    comma = text.find(",", start, end)
    if comma >= 0:
        last = _LIST_ENDS.search(text, comma, end)  # "no fever, cough or chills, knee pain"
        after = text.find(",", last.end(), end) if last else comma
        end = after if after >= 0 else end
    return end


def without_denials(text: EditedText) -> tuple[EditedText, bool]:
    """Return the text without what it denies, and whether it asserts nothing else.

    A text that only denies ("no fever") stays as it is.
    """
    spans = denied_spans(text.text)
    if not spans:
        return text, False
    left = text.apply(Edit(start, end, " ") for start, end in spans)
    return (left, False) if has_something_left(left.text) else (text, True)


def has_something_left(text: str) -> bool:
    """Return whether words are left that are neither function words nor generic."""
    return any(word.normal not in _common() and len(word.normal) > 1 for word in words_of(text))


@cache
def _common() -> WordList:
    content = lexicon("specialties")
    return WordList.of(*content["function_words"].values(), *content["generic"].values())
