"""Red flags of a conversation: which emergencies its last turns may be, and what to advise.

The rules are in red_flags.yaml, in words: concepts with their phrases in English and French, and
emergencies as combinations of concepts. What is denied, past, supposed or asked about in general
does not count (context.py). A match is a reason to advise help, never to refuse an answer.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from router.lexicon import lexicon
from router.preparation.languages import likely_french
from router.preparation.phrases import PhraseBook, Span
from router.preparation.reading import Reading, read
from router.preparation.spelling import MAX_WORDS, MIN_LETTERS, Speller
from router.text import clean, words_of
from router.urgency.context import GROUPS, Context
from router.urgency.wording import CALM_SIGN_FROM, SIGN_FROM, URGENT_FROM, Wording
from router.words import words

LANGUAGES = ("en", "fr")
Spans = dict[str, list[Span]]
RECENT_TURNS = 3  # user turns that are read together
GENERAL = "general_urgency"  # the flag of a text that sounds urgent and names no sign
WINDOW_WORDS = 40  # of the signs of one emergency, from the first to the last


@dataclass(frozen=True, slots=True)
class Urgency:
    """What was found. `flags`: names of red_flags.yaml; none: nothing urgent, and no advice."""

    flags: tuple[str, ...] = ()
    advice: str = ""  # in the question's language, ends in an empty line


@dataclass(frozen=True, slots=True)
class _Measure:
    """A number in the text that stands for a concept: "39.2 °C" for fever."""

    concept: str
    pattern: re.Pattern[str]
    at_least: float
    at_most: float


@dataclass(frozen=True, slots=True)
class _Rule:
    """Each of `all_of` is alternatives of concepts; the signs stand within `within` words."""

    flag: str
    all_of: tuple[tuple[str, ...], ...]
    unless: tuple[str, ...]
    within: int


@dataclass(frozen=True, slots=True)
class Signs:
    """What a text says by its signs.

    Attributes:
        flags: each with one of its signs.
        is_sure: a combination of several signs is among them, so its wording is not asked.
        is_elsewhere: it is about an animal, a story or an exam, so its wording means nothing.
        urgent_from: the log-odds of its wording from which it is urgent where no flag is sure.
    """

    reading: Reading
    flags: dict[str, Span]
    is_sure: bool
    is_elsewhere: bool
    urgent_from: float


class RedFlags:
    """The rules, compiled. They never change once built, so any number of threads may use them.

    Raises:
        ValueError: a rule, a pattern or a number of the files is malformed; names it.
    """

    def __init__(
        self,
        rules: Mapping[str, Any],
        context: Mapping[str, Any],
        wording: Wording | None = None,
    ) -> None:
        concepts: Mapping[str, Any] = rules["concepts"]
        unknown = sorted(set(context["groups"]) ^ set(GROUPS))
        if unknown:
            raise ValueError(f"context.yaml: groups are {GROUPS}; {unknown} is unknown or missing")
        phrases = {name: _phrases(name, concept) for name, concept in concepts.items()}
        self._concepts = frozenset(concepts)
        lists = {**context["lists"], **rules["lists"]}
        negations = lexicon("preparation/negation")["groups"]
        self._book = PhraseBook({**phrases, **negations, **context["groups"]}, lists)
        self._shorthand: dict[str, str] = context["shorthand"]
        signs = PhraseBook(phrases, lists)  # only their words are worth correcting
        self._known = self._book.words | words().known
        meant = signs.words | {w for w in self._known if w.startswith(tuple(signs.stems))}
        self._speller = Speller({w: w for w in sorted(meant)}, self._known)
        self._measures = [m for name, concept in concepts.items() for m in _measures(name, concept)]
        self._rules = [rule for flag in rules["flags"] for rule in _rules(flag, concepts)]
        self._also = {flag["name"]: flag.get("also") for flag in rules["flags"]}
        self._told_calmly = frozenset(f["name"] for f in rules["flags"] if f.get("told_calmly"))
        self._advice: Mapping[str, Mapping[str, str]] = rules["advice"]
        self._wording = wording

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._also)

    def find(self, turns: Sequence[str], language: str) -> Urgency:
        """Return the red flags of a conversation's last turns.

        The last turn counts alone, and together with up to two turns before it for what those did
        not flag by themselves: "My son has a fever", then "He is six weeks old". So advice that
        was given is not repeated with every later question.

        Args:
            turns: the user's, oldest first.
            language: ISO 639-1 code of the last turn; the advice is in English or French, in the
                language of the signs found where it is neither.
        """
        found = self._flags(turns[-1])
        if len(turns) > 1:
            recent = turns[-RECENT_TURNS:]
            before = self._flags("\n".join(recent[:-1]))
            together = self._flags("\n".join(recent))
            found |= {flag: span for flag, span in together.items() if flag not in before}
        if not found:
            return Urgency()
        flags = tuple(flag for flag in self._also if flag in found)
        spoken = language if language in LANGUAGES else found[flags[0]].language
        return Urgency(flags, self._advice_of(flags, spoken))

    def signs(self, text: str) -> dict[str, list[str]]:
        """Return the concepts that hold in a text, with the words that say so: for debugging."""
        reading, held, *_ = self._read(text)
        return {
            name: [" ".join(reading.words[s.start : s.end]) for s in spans]
            for name, spans in held.items()
        }

    def _corrected(self, written: Sequence[str]) -> list[str]:
        """Return the words, the first MAX_WORDS unknown ones corrected to words of the signs."""
        unknown = (w for w in written if w not in self._known and len(w) >= MIN_LETTERS)
        meant = {
            word: self._speller.correction(word) or word
            for word in islice(filter(str.isalpha, unknown), MAX_WORDS)
        }
        return [meant.get(word, word) for word in written]

    def _advice_of(self, flags: Sequence[str], language: str) -> str:
        texts = [self._advice["call"][language]]
        for also in dict.fromkeys(self._also[flag] for flag in flags):
            if also:
                texts.append(self._advice[also][language])
        return " ".join(" ".join(text.split()) for text in texts) + "\n\n"

    def _read(self, text: str) -> tuple[Reading, Spans, Spans, bool]:
        """Return the text, the concepts that hold, those it names, and whether it is elsewhere."""
        reading = self.read(text)
        found = self._book.find(self._corrected(reading.words), reading.sentences, reading.clauses)
        for measure in self._measures:
            spans = _measured(measure, reading)
            if spans:
                found[measure.concept] = [*found.get(measure.concept, ()), *spans]
        context = Context(reading, found)
        named = {
            name: [span for span in spans if not context.is_negated(span)]
            for name, spans in found.items()
            if name in self._concepts
        }
        held = {name: [s for s in spans if context.holds(s)] for name, spans in named.items()}
        held, named = ({k: v for k, v in spans.items() if v} for spans in (held, named))
        return reading, held, named, context.is_elsewhere

    def read(self, text: str) -> Reading:
        """Return the words of a text as the rules and the wording see them."""
        return read(clean(text), self._shorthand)

    def by_signs(self, text: str) -> Signs:
        """Return what a text says by its signs alone."""
        reading, held, named, is_elsewhere = self._read(text)
        flags: dict[str, Span] = {}
        is_sure = False
        for rule in self._rules:
            is_new = rule.flag not in flags or (len(rule.all_of) > 1 and not is_sure)
            if not is_new or any(name in named for name in rule.unless):
                continue
            span = _first_match(rule, held)
            if span:
                flags.setdefault(rule.flag, span)
                is_sure = is_sure or len(rule.all_of) > 1
        return Signs(reading, flags, is_sure, is_elsewhere, self._urgent_from(flags))

    def _urgent_from(self, flags: Iterable[str]) -> float:
        """Return from which log-odds of its wording a text with these flags is urgent."""
        if not self._told_calmly.isdisjoint(flags):
            return CALM_SIGN_FROM
        return SIGN_FROM if any(flags) else URGENT_FROM

    def _flags(self, text: str) -> dict[str, Span]:
        """Return the flags of a text by its signs and its wording."""
        signs = self.by_signs(text)
        if signs.is_sure or signs.is_elsewhere or self._wording is None:
            return signs.flags
        if not self._wording.is_urgent(signs.reading, signs.urgent_from):
            return {}
        is_french = likely_french(words_of(text))
        return signs.flags or {GENERAL: Span(0, 0, "fr" if is_french else "en")}


@cache
def load_red_flags(*, with_wording: bool = True) -> RedFlags:
    """Read the rules that come with the package, and the model of urgent wording."""
    wording = Wording.load() if with_wording else None
    return RedFlags(lexicon("urgency/red_flags"), lexicon("urgency/context"), wording)


def _phrases(name: str, concept: Mapping[str, Any]) -> dict[str, list[str]]:
    unknown = set(concept) - {*LANGUAGES, "numbers"}
    if unknown:
        raise ValueError(f"concept {name}: {sorted(unknown)} is not one of en, fr, numbers")
    return {language: concept.get(language) or [] for language in LANGUAGES}


def _measures(name: str, concept: Mapping[str, Any]) -> list[_Measure]:
    return [
        _Measure(
            name,
            re.compile(number["pattern"]),
            float(number.get("at_least", "-inf")),
            float(number.get("at_most", "inf")),
        )
        for number in concept.get("numbers", ())
    ]


def _rules(flag: Mapping[str, Any], concepts: Mapping[str, Any]) -> list[_Rule]:
    rules = []
    for combination in flag["any"]:
        all_of = tuple(tuple(part.split("|")) for part in combination["all"])
        unless = (*flag.get("unless", ()), *combination.get("unless", ()))
        for name in (*unless, *(name for part in all_of for name in part)):
            if name not in concepts:
                raise ValueError(f"flag {flag['name']}: no concept is named {name}")
        within = combination.get("within", WINDOW_WORDS)
        rules.append(_Rule(flag["name"], all_of, unless, within))
    return rules


def _measured(measure: _Measure, reading: Reading) -> list[Span]:
    spans = []
    for match in measure.pattern.finditer(reading.folded):
        number = next((group for group in match.groups() if group), None)
        value = None if number is None else float(number.replace(",", "."))
        if value is None or measure.at_least <= value <= measure.at_most:
            at = max(bisect_right(reading.starts, match.start()) - 1, 0)
            end = max(bisect_right(reading.starts, match.end() - 1), at + 1)
            spans.append(Span(at, end, "en"))
    return spans


def _first_match(rule: _Rule, held: Mapping[str, Sequence[Span]]) -> Span | None:
    """Return a sign of the first place where all parts of the rule stand near each other."""
    parts = [[s for name in part for s in held.get(name, ())] for part in rule.all_of]
    if not all(parts):
        return None
    for first in parts[0]:
        near = [[s for s in part if _is_near(first, s, rule.within)] for part in parts[1:]]
        if _are_apart(near):
            return first
    return None


def _are_apart(parts: Sequence[Sequence[Span]], taken: tuple[Span, ...] = ()) -> bool:
    """Whether each part has a sign in other words than those of the other parts."""
    if not parts:
        return True
    return any(
        _are_apart(parts[1:], (*taken, span))
        for span in parts[0]
        if not any(_share_words(span, other) for other in taken)
    )


def _share_words(one: Span, other: Span) -> bool:
    shared = range(max(one.start, other.start), min(one.end, other.end))
    return any(i not in one.skipped and i not in other.skipped for i in shared)


def _is_near(one: Span, other: Span, within: int) -> bool:
    """Whether two signs stand near each other, and are not the same words."""
    if _share_words(one, other):
        return False
    return max(one.end, other.end) - min(one.start, other.start) <= within
