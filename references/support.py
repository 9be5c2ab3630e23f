"""Whether each sentence of an answer is supported by a passage: words, numbers and negation agree.

A sentence is supported by a passage if

- the passage holds at least MIN_SHARE of its content words (all but one, of up to four words, and
  at least MIN_OF_FEW): the stem itself, what the glossary gives for it, or, of a French word, its
  English cognate; it holds MIN_SHARE of those that are not in its names; and it lacks no two of
  them in a row, so that nothing is added to what it says;
- it finds them in one sentence of the passage, and not here and there; one that says "may", "some"
  or "in many cases" supports only what says such a thing, too;
- every number in it, in digits or spelled, every type (II, 2b), and every code, such as a gene's
  (FLNB, MC1R), is in the passage;
- no word that both have is negated in the one and never negated in the other, or the reverse, and
  none is negated that the passage lacks;
- it has no word whose opposite the passage has in its place, such as dominant for recessive.

What ends without a full stop was cut, or is an item of a list: the passage must hold all of its
words. What announces, asks or only names something states nothing.

The measure knows few synonyms and no grammar: it errs towards "not supported".
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from references.cognates import skeleton
from references.passage import Passage
from references.query import meanings_of
from references.words import ASPECTS, ENGLISH, FRENCH, ROMAN, guess_language, sentences, stem, words

MIN_SHARE = 0.75
MIN_OF_FEW = 0.6
MAX_OPEN = 8  # content words of what announces or asks; a longer one states something
MAX_NAME = 2  # content words and no others: a name
MIN_WORDS = 2  # of what ends without a full stop, to state something
SCOPE = 4  # content words that a negation reaches, to the clause's end
MARKER = re.compile(r"\[(\d+)\]")
_ENUMERATOR = re.compile(r"^\s*(?:\d+[.)]|[-*\u2022])(?:\s+|$)")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_CODE = re.compile(r"\b(?=\w*[A-Z]\w*[A-Z0-9])[A-Z0-9][A-Za-z0-9]+\b")
_TYPES = re.compile(
    r"\btypes? ([ivx]+|\d+|[a-z])([a-z]?)\b(?:(?:,| and| or| et| ou) ([ivx]+|\d+)\b)?", re.I
)
_WHOLE = re.compile("[.!\u2026][\"'\u00bb\u201d)\\]]*$")
_OPEN = re.compile("^[^:?]*(?::[^:?]*)?[:?][\"'\u00bb\u201d)\\]]*$")
_HEDGE = re.compile(
    r"\b(?:may|might|could|some|sometimes|possibl[ey]|rarely|rare cases|often|usually|many|most|"
    r"appears?|believed|thought|suspected|suggests?|approximately|peut|peuvent|pourrai(?:t|ent)|"
    r"parfois|souvent|certaine?s|rarement|plupart|possibles?|probable(?:s|ment)?)\b",
    re.I,
)
_CLAUSE = re.compile(r"[,;:.!?()\u2026]|\b(?:but|however|mais|cependant|toutefois)\b", re.I)
_CONTRACTED = re.compile(r"n['\u2019]t\b", re.I)
_NEGATIONS = {
    "en": frozenset("no not never none nor neither without cannot nothing".split()),
    "fr": frozenset("pas jamais aucun aucune aucuns aucunes sans ni non rien nul nulle".split()),
}
_SPELLED = ROMAN | dict(
    zip(
        "two three four five six seven eight nine ten".split()
        + "deux trois quatre cinq sept huit neuf dix".split(),
        "2 3 4 5 6 7 8 9 10 2 3 4 5 7 8 9 10".split(),
        strict=True,
    )
)
_DIGITS = ROMAN | {"i": "1", "v": "5", "x": "10"}
# What every sentence may say without stating more.
_LIGHT = frozenset(
    """yes oui cause causes caused found seen case cases include includes including characterized
    occurs occur affects affect affected known called usually generally typically source sources
    passage according provoque provoquent cas inclut comprend caracterise caracterisee connu connue
    generalement habituellement selon atteint touche due est""".split()
)
_OPPOSITES = [
    [frozenset(side.split()) for side in line.split("|")]
    for line in """
increased increase higher high raised elevated | decreased decrease lower low reduced
dominant | recessive
benign | malignant
acute | chronic
left | right
male males men boys | female females women girls
congenital hereditary inherited genetic | acquired
common frequent often | rare uncommon rarely
mild | severe
upper | lower
early | late
always | never
before | after
large enlarged | small
augmente augmentee augmentation eleve elevee haut | diminue diminuee diminution bas basse
dominante dominant | recessive recessif
benigne benin | maligne malin
aigu aigue | chronique
gauche | droite droit
hommes homme masculin garcons | femmes femme feminin filles
frequent frequente courant souvent | rare rarement""".strip().splitlines()
]


@dataclass(frozen=True, slots=True)
class Support:
    """A sentence of an answer: its characters from `start` to `end`.

    Attributes:
        citation: number of the passage that supports it, counted from 1. None: no passage does.
        share: of its content words that the passage nearest to it holds.
    """

    start: int
    end: int
    citation: int | None
    share: float


@dataclass(frozen=True)
class _Text:
    text: str
    language: str

    @cached_property
    def polarity(self) -> dict[str, set[bool]]:
        """Return content word -> whether it stands negated, not negated, or both."""
        found: dict[str, set[bool]] = {}
        for word, negated in _content(self.text, self.language):
            found.setdefault(word, set()).add(negated)
        return found

    @cached_property
    def numbers(self) -> set[str]:
        text = _TYPES.sub(" ", self.text)
        digits = {n.replace(",", ".").rstrip(".") for n in _NUMBER.findall(text)}
        return digits | {_SPELLED[w] for w in words(text) if w in _SPELLED}

    @cached_property
    def types(self) -> set[str]:
        """Return the types that are named, such as 2 and 1b, with Roman numbers as digits."""
        found = set()
        for first, letter, second in _TYPES.findall(self.text.lower()):
            found |= {_DIGITS.get(first, first) + letter, _DIGITS.get(second, second)}
        return found - {""}

    @cached_property
    def is_hedged(self) -> bool:
        return bool(_HEDGE.search(self.text))

    @cached_property
    def codes(self) -> set[str]:
        """Return words such as FLNB or MC1R, in lower case; none of a text in capitals."""
        if self.text.isupper():
            return set()
        return {code.lower() for code in _CODE.findall(self.text)} - ROMAN.keys()

    @cached_property
    def all_words(self) -> set[str]:
        return set(words(self.text))

    @cached_property
    def by_stem(self) -> dict[str, set[bool]]:
        return _merged((stem(w, self.language), p) for w, p in self.polarity.items())

    @cached_property
    def by_skeleton(self) -> dict[str, set[bool]]:
        return _merged((skeleton(w), p) for w, p in self.polarity.items())


class _Source:
    """A passage as the check sees it."""

    def __init__(self, passage: Passage) -> None:
        names = f"{passage.title}. {'; '.join(passage.synonyms)}."
        self.names = _Text(names, passage.language)
        self.whole = _Text(f"{names} {passage.text}", passage.language)
        self._passage = passage

    @cached_property
    def parts(self) -> list[_Text]:
        """Return each sentence with the names."""
        text, language = self._passage.text, self._passage.language
        return [
            _Text(f"{self.names.text} {text[start:end]}", language)
            for start, end in sentences(text)
        ]


class SupportCheck:
    """Checks sentences against the passages of one answer, as they were numbered for it."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._sources = [_Source(passage) for passage in passages]

    def of(self, sentence: str, language: str) -> tuple[int | None, float] | None:
        """Return the citation and share of a sentence, as of `Support`; None if it states nothing.

        A passage that the sentence cites, by a marker such as [1], is preferred to others.
        """
        cited = {int(n) for n in MARKER.findall(sentence)}
        said = _Text(_ENUMERATOR.sub("", MARKER.sub(" ", sentence)).strip(), language)
        is_whole = bool(_WHOLE.search(said.text))
        sources = self._sources
        if _states_nothing(said, sources, is_whole=is_whole):
            return None
        shares = [_mean(_held(said, source.whole)) for source in sources]
        order = sorted(range(len(sources)), key=lambda i: (i + 1 not in cited, -shares[i], i))
        citation = next(
            (i + 1 for i in order if _is_supported(said, sources[i], is_whole=is_whole)), None
        )
        return citation, shares[citation - 1] if citation else max(shares, default=0.0)


def support(
    answer: str, passages: Sequence[Passage], *, language: str | None = None
) -> list[Support]:
    """Return each sentence of an answer that states something, and the passage that supports it.

    Args:
        language: of the answer, en or fr; default: what its words look like.
    """
    language, check = language or guess_language(answer), SupportCheck(passages)
    found = ((span, check.of(answer[slice(*span)], language)) for span in sentences(answer))
    return [Support(*span, *said) for span, said in found if said]


def unsupported_share(found: Sequence[Support]) -> float:
    """Return the share of an answer's sentences that no passage supports, by their length or by
    their number: the larger, since a short invention is one, too."""
    if not found:
        return 0.0
    missing = [s.end - s.start for s in found if s.citation is None]
    return max(sum(missing) / sum(s.end - s.start for s in found), len(missing) / len(found))


def _content(text: str, language: str) -> Iterator[tuple[str, bool]]:
    """Yield the content words of a text, and whether a negation reaches each."""
    empty = FRENCH if language == "fr" else ENGLISH
    negations = _NEGATIONS[language]
    for clause in _CLAUSE.split(_CONTRACTED.sub(" not", text)):
        left = 0
        for word in words(clause):
            if word in negations:
                left = SCOPE
            elif not (word in empty or word in _LIGHT or word in _SPELLED or word.isdecimal()):
                yield word, left > 0
                left -= 1


def _merged(pairs: Iterator[tuple[str, set[bool]]]) -> dict[str, set[bool]]:
    found: dict[str, set[bool]] = {}
    for key, polarity in pairs:
        if key:
            found.setdefault(key, set()).update(polarity)
    return found


def _in(source: _Text, word: str, language: str) -> set[bool]:
    """Return how the source has a word: negated, not negated, both, or {}: not at all."""
    if found := source.by_stem.get(stem(word, source.language)) or source.by_stem.get(
        stem(word, language)
    ):
        return found
    for meaning in meanings_of(word, language):
        each = [source.by_stem.get(stem(part)) for part in meaning]
        if each and all(each):
            return set().union(*(p for p in each if p))
    return source.by_skeleton.get(skeleton(word), set()) if language != source.language else set()


def _mean(held: Sequence[bool]) -> float:
    return sum(held) / len(held) if held else 1.0


def _held(said: _Text, source: _Text) -> list[bool]:
    return [bool(_in(source, word, said.language)) for word in said.polarity]


def _states_nothing(said: _Text, sources: Sequence[_Source], *, is_whole: bool) -> bool:
    """Return whether a sentence announces something, asks, or only names it."""
    size = len(said.polarity)
    if not (size or said.numbers) or (size <= MAX_OPEN and _OPEN.search(said.text)):
        return True
    if size <= MAX_NAME and size == len(words(said.text)):
        return True
    return not is_whole and (size < MIN_WORDS or any(_only_names(said, s) for s in sources))


def _only_names(said: _Text, source: _Source) -> bool:
    named = _held(said, source.names)
    return all(one or w in ASPECTS for w, one in zip(said.polarity, named, strict=True))


def _is_supported(said: _Text, source: _Source, *, is_whole: bool) -> bool:
    """Return whether a passage, and one sentence of it, hold what a sentence says."""
    if not said.polarity:  # a number alone is in every text
        return False
    named = _held(said, source.names)
    return _is_held(said, source.whole, named, is_whole) and any(
        _is_held(said, part, named, is_whole) and (said.is_hedged or not part.is_hedged)
        for part in source.parts
    )


def _is_held(said: _Text, source: _Text, named: Sequence[bool], is_whole: bool) -> bool:
    """Return whether a source has enough of the words, of which some are `named`, and agrees."""
    held = _held(said, source)
    more = [one for one, is_named in zip(held, named, strict=True) if not is_named]
    share, absent = _mean(held), held.count(False)
    is_most = share >= MIN_SHARE or (absent == 1 and share >= MIN_OF_FEW)
    is_enough = is_most and _mean(more) >= MIN_SHARE if is_whole else not absent
    return (
        is_enough and all(one or other for one, other in pairwise(held)) and _agrees(said, source)
    )


def _agrees(sentence: _Text, source: _Text) -> bool:
    numbers = source.numbers | source.types
    if not (sentence.numbers | sentence.types <= numbers and sentence.codes <= source.all_words):
        return False
    for word, polarity in sentence.polarity.items():
        there = _in(source, word, sentence.language) or {False}
        if not polarity & there:
            return False
    mine, theirs = set(sentence.polarity), set(source.polarity)
    return not any(
        (mine & a and theirs & b and not theirs & a) or (mine & b and theirs & a and not theirs & b)
        for a, b in _OPPOSITES
    )
