"""What a turn of a conversation can say by its words, and which turns speak for the current topic.

A short answer ("male", "about two weeks ago", "on my left arm", "ibuprofen") is no evidence for a
specialty, however sure the classifier is of it. A turn overrules what was said before only if it
names a topic: with a word that is no answer, place, circumstance, treatment or measurement
(conversation.yaml), or with a part of the body and a complaint or a change of topic.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from router.lexicon import WordList, by_language, lexicon
from router.text import Word, folded, words_of
from router.words import words as words_known

Turn = TypeVar("Turn")
MIN_STEM_LETTERS = 7  # of a word that ends like a drug's name
FEW_WORDS = 8  # of an answer, or of a question about what was said
SHORT_WORDS = 3  # a turn of another language with no more says nothing of its own


@dataclass(frozen=True, slots=True)
class _Lists:
    neutral: WordList
    places: WordList
    complaints: WordList
    others: WordList
    measurements: WordList
    openers: WordList
    stems: tuple[str, ...]
    changes: re.Pattern[str]
    references: frozenset[str]
    speakers: frozenset[str]
    requests: frozenset[str]
    wishes: tuple[str, ...]
    idioms: re.Pattern[str]


@cache
def _lists() -> _Lists:
    content, specialties = lexicon("conversation"), lexicon("specialties")

    def words(*names: str) -> WordList:
        return WordList.of(*(text for name in names for text in by_language(content[name])))

    def phrases(name: str) -> re.Pattern[str]:
        listed = ",".join(by_language(content[name])).split(",")
        either = "|".join(re.escape(phrase.strip()) for phrase in listed)
        return re.compile(rf"(?<!\w)(?:{either})(?!\w)")

    return _Lists(
        neutral=WordList.of(
            *by_language(content["answers"]),
            *by_language(specialties["function_words"]),
            *by_language(specialties["generic"]),
        ),
        places=words("places"),
        complaints=words("complaints"),
        others=words("circumstances", "treatments", "measurements"),
        measurements=words("measurements"),
        openers=WordList.of(*by_language(content["openers"])),
        stems=tuple(content["stems"].split()),
        changes=phrases("changes"),
        references=frozenset(" ".join(by_language(content["references"])).split()),
        speakers=frozenset(" ".join(by_language(content["speakers"])).split()),
        requests=frozenset(" ".join(by_language(content["requests"])).split()),
        wishes=tuple(phrase.strip() for phrase in content["wishes"].split(",")),
        idioms=phrases("idioms"),
    )


@dataclass(frozen=True, slots=True)
class Content:
    """What the words of a turn say.

    Attributes:
        has_signal: not only that it answers something.
        has_place: it names a part of the body.
        has_topic: it may change what the conversation is about.
        is_request: it asks for something that the lists do not explain, or wants it done.
    """

    has_signal: bool
    has_place: bool
    has_topic: bool
    is_request: bool


def content_of(
    text: str, words: Sequence[Word], written: Sequence[str], *, is_mute: bool = False
) -> Content:
    """Read a prepared turn.

    Args:
        words: of `text`.
        written: for each word, in normal form, what the user wrote instead ("hb": "hemoglobin").
        is_mute: it asserts nothing that can be read: a denial, or a few foreign words.
    """
    lists, searched = _lists(), folded(text)
    spoken = [word.normal for word in words]
    plain = words_of(lists.idioms.sub(" ", searched))
    bodily = {word.normal for word in plain if word.normal in lists.places}
    told = [
        normal
        for normal in spoken
        if len(normal) > 1
        and (not _is_neutral(normal, lists) or normal in bodily or normal in lists.complaints)
    ]
    topics = [
        normal
        for normal, short in zip(spoken, written, strict=True)
        if normal in told and short not in lists.others and _may_name_a_topic(normal, lists)
    ]
    is_change = lists.changes.search(searched) is not None
    is_request = _is_request(searched, words, lists)
    speaks_up = is_change or any(normal in lists.speakers for normal in spoken)
    if _opens_an_answer(searched, words, lists):
        return Content(bool(told), bool(bodily), has_topic=False, is_request=False)
    is_short = len(words) <= FEW_WORDS and not speaks_up
    points_back = is_short and any(normal in lists.references for normal in spoken)
    if points_back or (is_short and not is_request):
        topics = []  # "does it leave scars?" asks about what was said; "headache too" answers
    has_complaint = any(normal in lists.complaints for normal in spoken)
    is_measured = any(normal in lists.measurements for normal in spoken)
    has_topic = bool(topics) or (bool(bodily) and has_complaint)
    has_topic = has_topic or (is_change and (bool(bodily) or is_measured))
    explained = (lists.others, lists.places, lists.complaints)
    is_explained = all(any(normal in listed for listed in explained) for normal in told)
    return Content(
        has_signal=bool(told),
        has_place=bool(bodily),
        has_topic=has_topic and not is_mute,
        is_request=is_request and not (is_explained or points_back),
    )


def _is_neutral(normal: str, lists: _Lists) -> bool:
    if any(c.isdigit() for c in normal) or normal in lists.neutral.words:
        return True
    return normal in lists.neutral and normal not in words_known().clinical  # rouge*: "rougeole"


def _may_name_a_topic(normal: str, lists: _Lists) -> bool:
    if any(normal in listed for listed in (lists.places, lists.complaints, lists.others)):
        return False
    if normal in words_known().everyday:
        return False
    return len(normal) < MIN_STEM_LETTERS or not normal.removesuffix("s").endswith(lists.stems)


def _opens_an_answer(searched: str, words: Sequence[Word], lists: _Lists) -> bool:
    """Return whether a short statement begins with where, when or how: "on my left arm"."""
    is_short = 0 < len(words) <= FEW_WORDS and "?" not in searched
    return is_short and words[0].normal in lists.openers


def _is_request(searched: str, words: Sequence[Word], lists: _Lists) -> bool:
    if "?" in searched:
        return True
    return bool(words) and (
        words[0].normal in lists.requests or searched.lstrip().startswith(lists.wishes)
    )


def thread(
    turns: Sequence[Turn],
    *,
    content: Callable[[Turn], Content],
    settled: Callable[[Sequence[Turn]], str | None],
    is_outside: Callable[[Turn], bool],
) -> list[Turn]:
    """Return the turns that say what the conversation is about now, oldest first.

    A turn that names another topic for sure begins anew; one that leaves it open joins the earlier
    ones unless they are sure without it.

    Args:
        settled: returns the specialty that turns name together for sure, if they do.
        is_outside: whether a turn is certainly not for a clinic.
    """
    current: list[Turn] = []
    for turn in turns:
        said = content(turn)
        if not (said.has_topic if current else said.has_signal):
            continue
        if is_outside(turn) and (current or len(turns) > 1):
            continue
        before, own = settled(current) if current else None, settled([turn])
        if own is not None and own != before:
            current = [turn]
        elif before is None or own is not None:
            current.append(turn)
    return current or [turn for turn in turns if content(turn).has_signal] or list(turns)
