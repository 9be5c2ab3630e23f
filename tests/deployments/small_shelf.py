"""Passages for a backend in tests: found by the words of their names."""

from references.passage import Passage, ReferencesError
from references.shelf import Hit
from references.signs_question import MatchedDisease, asked_signs
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

    def observe_unsupported(self, share: float) -> None:
        self.shares.append(share)
