"""What an answer stands on: passages found for the question, put into the prompt, and the check of
the answer against them."""

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from adapters.grounded_prompt import SourceText, room_for_passages, with_passages
from deployments.api.errors import ApiError
from deployments.api.protocol.references import CitationReply, SupportReply
from deployments.engine.request import FinishReason, Timings, TokenEvent
from deployments.messages import Backend, GenerateRequest
from deployments.settings import GroundingMode
from references.passage import Passage, ReferencesError
from references.quote import quote
from references.ranking import Weights
from references.shelf import Hit
from references.support import Support, support, unsupported_share

NO_SOURCE, UNGROUNDED = "no_source", "ungrounded"
_MORE = 2  # times as many passages are looked at as are used, for the specialty's boost
_TURNS = 3  # the user's last, that are searched together; more would blur what is asked
_MARKER = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Found:
    """What was found for a question, before it is known who answers."""

    mode: GroundingMode
    hits: tuple[Hit, ...] = ()

    def for_specialty(self, backend: Backend, specialty: str | None, language: str) -> "Sources":
        """Return the sources of one answer; passages of its specialty rank a little higher."""
        boost = Weights().specialty
        ranked = sorted(
            self.hits,
            key=lambda hit: -hit.score - boost * (hit.passage.specialty == (specialty or "")),
        )
        passages = [hit.passage for hit in ranked[: backend.limits.references.limit]]
        return Sources(backend, self.mode, passages, "fr" if language == "fr" else "en")


def mode_of(backend: Backend, grounding: GroundingMode | None) -> GroundingMode:
    """Return the request's mode, or else the operator's. `quote` needs no model."""
    return backend.limits.references.mode if grounding is None else grounding


async def find(backend: Backend, grounding: GroundingMode | None, turns: Sequence[str]) -> Found:
    """Search the shelf, if the request (`grounding`) or else the operator wants passages.

    Args:
        turns: the user's; a follow-up is searched together with what was said before it, and
            alone where that finds nothing.

    Raises:
        ApiError: 503, the request asks for passages, and there is no shelf.
    """
    settings, mode = backend.limits.references, mode_of(backend, grounding)
    if mode == "off":
        return Found(mode)
    try:
        for question in dict.fromkeys(("\n".join(turns[-_TURNS:]), turns[-1])):
            hits = await backend.references.search(
                question, language=None, limit=_MORE * settings.limit
            )
            if hits:
                break
    except ReferencesError as error:
        if grounding is not None:
            raise no_shelf(error, "grounding") from None
        return Found(mode)
    return Found(mode, tuple(hits))


def no_shelf(error: ReferencesError, param: str | None = None) -> ApiError:
    """Return the refusal of a request that needs the shelf."""
    return ApiError(
        503,
        "no_reference_shelf",
        f"there are no references to answer from: {error}",
        param=param,
        headers={"retry-after": "60"},
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the check of a whole answer gave; characters are those of the text that was sent.

    Attributes:
        text: takes the answer's place; None: the answer stands.
    """

    support: tuple[Support, ...] = ()
    text: str | None = None

    @property
    def notices(self) -> tuple[str, ...]:
        return () if self.text is None else (UNGROUNDED,)

    @property
    def reply(self) -> list[SupportReply]:
        return [SupportReply.of(found) for found in self.support]

    def after(self, prefix: str) -> "Verdict":
        """Return the verdict for an answer before which `prefix` was sent."""
        size = len(prefix)
        moved = [replace(s, start=s.start + size, end=s.end + size) for s in self.support]
        return Verdict(tuple(moved), None if self.text is None else prefix + self.text)


class Sources:
    """The passages of one answer, in the order of their numbers."""

    def __init__(
        self, backend: Backend, mode: GroundingMode, passages: Sequence[Passage], language: str
    ) -> None:
        self._backend = backend
        self._passages = tuple(passages)
        self._language = language
        self.mode = mode

    @property
    def is_on(self) -> bool:
        return self.mode != "off"

    @property
    def notices(self) -> tuple[str, ...]:
        """Return what is to be said before the answer begins."""
        return (NO_SOURCE,) if self.is_on and not self._passages else ()

    @property
    def opening(self) -> str:
        """Return what a generated answer begins with."""
        is_alone = self.mode == "cite" and not self._passages
        return f"{quote((), self._language)}\n\n" if is_alone else ""

    @property
    def citations(self) -> list[CitationReply]:
        return [CitationReply.of(p, number) for number, p in enumerate(self._passages, 1)]

    def events(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """Yield the events of the answer."""
        if self.mode == "quote":
            return self._quoted(call)
        if self.mode == "cite":
            texts = [SourceText(p.title, p.text) for p in self._passages]
            room = room_for_passages(call.turns, self._backend.clinic.max_input_tokens)
            call = replace(call, turns=with_passages(call.turns, texts, max_chars=room))
        return self._backend.generate(call)

    async def _quoted(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        text = quote(self._passages, self._language)
        yield TokenEvent(call.request_id, text, 0, 0, Timings(), FinishReason.STOP)

    async def check(self, text: str) -> Verdict:
        """Check a whole answer, its opening included, against the passages."""
        if self.mode != "cite":
            return Verdict()
        said = text.removeprefix(self.opening)
        found = await asyncio.to_thread(support, said, self._passages)
        if not self._passages:
            return Verdict(tuple(found)).after(self.opening)
        share = unsupported_share(found)
        self._backend.references.observe_unsupported(share)
        if share > self._backend.limits.references.max_unsupported:
            return Verdict((), quote(self._passages, self._language))
        return Verdict(tuple(found))


def markers(text: str, citations: Sequence[CitationReply]) -> list[tuple[int, int, CitationReply]]:
    """Return start, end and citation of each marker in a text, such as [1]."""
    by_number = {citation.number: citation for citation in citations}
    return [
        (*found.span(), by_number[int(found[1])])
        for found in _MARKER.finditer(text)
        if int(found[1]) in by_number
    ]
