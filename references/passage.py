"""A passage: a text of known origin that an answer may quote and cite."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Literal, get_args
from urllib.parse import urlsplit

Language = Literal["en", "fr"]
LANGUAGES: tuple[str, ...] = get_args(Language)
MAX_TEXT_CHARS = 20_000
MAX_TITLE_CHARS = 500
MAX_ID_CHARS = 200
LISTS = ("synonyms", "identifiers", "wordings_en", "wordings_fr")  # fields of several texts
MAX_PROBLEMS = 20  # of one collection that an error lists
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._/#-]*")
# Control characters other than tab and line ends, and halves of surrogate pairs.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_SPECIALTY = re.compile(r"[a-z][a-z0-9_]*")


class ReferencesError(Exception):
    """A passage, a source or a shelf cannot be used; each problem names the item and the mend.

    Attributes:
        public: what anybody may read instead, where the problems name a server.
    """

    def __init__(self, *problems: str, public: str | None = None) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.public = public


class PassagesRefused(ReferencesError):
    """What was given does not fit the shelf; the shelf itself is in order."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text with its origin. Markup inside is data: whoever shows it escapes it.

    Attributes:
        id: unique on a shelf, such as HP:0000964.
        title: the name of what the passage is about.
        text: as the source has it, word for word.
        language: en or fr.
        source: publisher, work and version, as a reader would cite it.
        licence: name or address of the terms under which the text may be shown.
        synonyms: other names of the same thing.
        specialty: whose questions the passage is for. None: everyone's.
        url: http or https address of the passage, or "".
        identifiers: what the source itself cites, such as PMID:32412211.
        kind: `term` (a sign, a topic) or `disease` (its recorded signs). A question for signs
            gets the disease first where both bear the name.
        prominence: 0 to 1, how much the source makes of it; of two passages that fit a question
            alike, the more prominent one comes first.
        wordings_en: how people say it in English; searched as names are, and never shown.
        wordings_fr: the same in French.
    """

    id: str
    title: str
    text: str
    language: str
    source: str
    licence: str
    synonyms: tuple[str, ...] = ()
    specialty: str | None = None
    url: str = ""
    identifiers: tuple[str, ...] = ()
    kind: str = "term"
    prominence: float = 0.0
    wordings_en: tuple[str, ...] = ()
    wordings_fr: tuple[str, ...] = ()

    def names(self) -> Iterator[tuple[str, str]]:
        """Yield what the passage is searched by, the title first, each with its language."""
        yield from ((name, self.language) for name in (self.title, *self.synonyms))
        yield from ((wording, "en") for wording in self.wordings_en)
        yield from ((wording, "fr") for wording in self.wordings_fr)

    @property
    def checksum(self) -> str:
        """Return the SHA-256 of all fields, in hexadecimal."""
        values = [getattr(self, field.name) for field in fields(self)]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    def problems(self) -> list[str]:
        """Return what keeps the passage from a shelf; each line names the field and the mend."""
        found = [
            f"it has no {name}: give it one"
            for name in ("id", "title", "text", "source", "licence")
            if not str(getattr(self, name)).strip()
        ]
        if self.id and not (_ID.fullmatch(self.id) and len(self.id) <= MAX_ID_CHARS):
            found.append(
                f"id {self.id[:40]!r}: letters, digits and :._/#- are allowed, {MAX_ID_CHARS} at "
                "most, the first a letter or digit: rename it"
            )
        if self.language not in LANGUAGES:
            found.append(f"language {self.language!r}: it is one of {', '.join(LANGUAGES)}")
        if self.specialty is not None and not _SPECIALTY.fullmatch(self.specialty):
            found.append(f"specialty {self.specialty!r}: lower-case letters, digits and _ expected")
        if self.kind not in ("term", "disease"):
            found.append(f"kind {self.kind!r}: it is term or disease")
        if not 0 <= self.prominence <= 1:
            found.append(f"prominence {self.prominence!r}: a number from 0 to 1 is expected")
        if self.url and not _is_web(self.url):
            found.append(f"url {self.url[:80]!r}: only http and https addresses are shown")
        if len(self.title) > MAX_TITLE_CHARS:
            found.append(f"a title of {len(self.title)} characters: {MAX_TITLE_CHARS} at most")
        if len(self.text) > MAX_TEXT_CHARS:
            found.append(
                f"a text of {len(self.text)} characters: split it, {MAX_TEXT_CHARS} at most"
            )
        names = (name for name, _ in self.names())
        whole = "".join((self.text, self.source, self.licence, *names))
        if bad := _CONTROL.search(whole):
            found.append(f"the control character {bad[0]!r}: remove it")
        return found


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable()


def checked(passages: Iterable[Passage]) -> Iterator[Passage]:
    """Yield passages that are sound and have ids of their own.

    Raises:
        PassagesRefused: after the last passage, with up to MAX_PROBLEMS problems of them all.
    """
    seen: set[str] = set()
    found: list[str] = []
    for passage in passages:
        name = f"passage {passage.id[:MAX_ID_CHARS] or passage.title[:80]}"
        problems = passage.problems()
        if passage.id in seen:
            problems.append("another passage has this id: rename one")
        seen.add(passage.id)
        found += [f"{name}: {problem}" for problem in problems]
        if not found:
            yield passage
    if found:
        more = len(found) - MAX_PROBLEMS
        shown = [*found[:MAX_PROBLEMS], *([f"and {more} more problems"] if more > 0 else [])]
        raise PassagesRefused(*shown)
