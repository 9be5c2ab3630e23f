"""Passages for a backend in tests: found by the words of their names."""

from collections import Counter
from collections.abc import Sequence

from references.passage import Passage, PassagesRefused, ReferencesError, checked
from references.shelf import Hit
from references.signs_question import MatchedDisease, asked_signs
from references.version import Source
from tests.references.passages import ECZEMA, HAIR, MARFAN, STONES


class SmallShelf:
    """Implements `messages.PassageSource`."""

    def __init__(self) -> None:
        self.passages: list[Passage] = [ECZEMA, HAIR, STONES]
        self.asked: list[str] = []
        self.shares: list[float] = []
        self.problem: str | None = None

    async def search(self, question: str, *, language: str | None, limit: int) -> list[Hit]:
        await self.version()
        self.asked.append(question)
        found = [
            Hit(passage, 1.0 - number / 100, 0.9)
            for number, passage in enumerate(self.passages)
            if any(n.lower() in question.lower() for n in (passage.title, *passage.synonyms))
        ]
        return found[:limit]

    async def diseases(self, question: str, *, limit: int) -> list[MatchedDisease]:
        await self.version()
        signs = {sign: sign for sign in asked_signs(question) if sign in MARFAN.text.lower()}
        return [MatchedDisease(MARFAN, signs)][:limit] if len(signs) > 1 else []

    async def version(self) -> str:
        if self.problem:
            raise ReferencesError(self.problem)
        return "1-0123456789ab"

    async def sources(self) -> list[Source]:
        await self.version()
        counted = Counter((p.source, p.licence, p.specialty, p.language) for p in self.passages)
        return [Source(*key, count) for key, count in counted.items()]

    async def add(self, passages: Sequence[Passage], *, replace: bool) -> str:
        new = list(checked(passages))
        there = {p.id for p in self.passages}
        if taken := [p.id for p in new if p.id in there and not replace]:
            raise PassagesRefused(*(f"passage {id_}: the id is on the shelf" for id_ in taken))
        ids = {p.id for p in new}
        self.passages = [*(p for p in self.passages if p.id not in ids), *new]
        return await self.version()

    async def remove(self, ids: Sequence[str], *, source: str | None) -> str:
        there = {p.id for p in self.passages}
        if missing := [id_ for id_ in ids if id_ not in there]:
            raise PassagesRefused(*(f"passage {id_}: there is none" for id_ in missing))
        self.passages = [p for p in self.passages if p.id not in ids and p.source != source]
        return await self.version()

    def observe_unsupported(self, share: float) -> None:
        self.shares.append(share)
