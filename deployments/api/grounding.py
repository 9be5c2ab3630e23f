"""What an answer stands on: passages found for the question, put into the prompt, and the check of
the answer against them."""

import functools
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from adapters.grounded_prompt import SourceText, room_for_passages, with_passages
from deployments.api.errors import ApiError
from deployments.api.protocol.references import CitationReply, SupportReply
from deployments.engine.request import FinishReason, Timings, TokenEvent
from deployments.messages import Backend, GenerateRequest
from deployments.setting_sections import GroundingMode
from references.asked import searched
from references.markers import MarkedText
from references.passage import Passage, ReferencesError
from references.quote import quote, quote_diseases
from references.ranking import Weights
from references.shelf import Hit
from references.signs_question import MatchedDisease, asked_signs
from references.support import MARKER, Support, unsupported_share
from router.policy import Reason, Route

NO_SOURCE, UNGROUNDED, MATCHING_SIGNS = "no_source", "ungrounded", "matching_signs"
OUTSIDE_SUPPORT = 0.6  # of the best passage, for a question that is no medicine to the router
_MORE = 2  # times as many passages are looked at as are used, for the specialty's boost
_TURNS = 3  # the user's last, that are searched together; more would blur what is asked
_DISEASES = 5  # that a list of signs gets, at least


@dataclass(frozen=True, slots=True)
class Found:
    """What was found for a question, before it is known who answers.

    Attributes:
        diseases: those asked for by their signs. They are listed, whatever the mode.
    """

    mode: GroundingMode
    hits: tuple[Hit, ...] = ()
    diseases: tuple[MatchedDisease, ...] = ()

    def for_specialty(self, backend: Backend, specialty: str | None, route: Route) -> "Sources":
        """Return the sources of one answer; passages of its specialty rank a little higher.

        What the router finds to be no medicine has none unless they fit well: a computer's virus.
        """
        language = route.language
        spoken = "fr" if language == "fr" else "en"
        if self.diseases:
            listed = [disease.passage for disease in self.diseases]
            signs = [disease.signs.values() for disease in self.diseases]
            text = quote_diseases(listed, spoken, signs)
            return Sources(backend, "quote", listed, spoken, (MATCHING_SIGNS,), text)
        boost = Weights().specialty
        is_outside = route.reason is Reason.OUT_OF_SCOPE and not route.red_flags
        best = max((hit.support for hit in self.hits), default=0.0)
        ranked = sorted(
            () if is_outside and best < OUTSIDE_SUPPORT else self.hits,
            key=lambda hit: -hit.score - boost * (hit.passage.specialty == (specialty or "")),
        )
        passages = [hit.passage for hit in ranked[: backend.limits.references.limit]]
        return Sources(backend, self.mode, passages, spoken)


def mode_of(backend: Backend, grounding: GroundingMode | None, *, is_named: bool) -> GroundingMode:
    """Return the request's mode, or else the operator's.

    Args:
        is_named: the request says who answers, so it is to be heard.
    """
    if grounding is not None:
        return grounding
    settings = backend.limits.references
    return settings.named if is_named and settings.named is not None else settings.mode


async def find(
    backend: Backend, mode: GroundingMode, turns: Sequence[str], *, is_asked_for: bool
) -> Found:
    """Search the shelf, unless the mode is off.

    Args:
        turns: the user's; a follow-up is searched together with what was said before it, and
            alone where that finds nothing; then what it asks (references/asked.py).
        is_asked_for: the request itself names the mode.

    Raises:
        ApiError: 503, the request asks for passages, and there is no shelf.
    """
    if mode == "off":
        return Found(mode)
    limit = backend.limits.references.limit
    before = ["\n".join(turns[-_TURNS:])] if len(turns) > 1 else []
    questions = dict.fromkeys((*before, *searched(turns[-1])))
    try:
        if asked_signs(turns[-1]):
            for question in dict.fromkeys((*before, turns[-1])):
                diseases = await backend.references.diseases(question, limit=max(limit, _DISEASES))
                if diseases:
                    return Found(mode, diseases=tuple(diseases))
        for question in questions:
            hits = await backend.references.search(question, language=None, limit=_MORE * limit)
            if hits:
                break
    except ReferencesError as error:
        if is_asked_for:
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
    """The passages of one answer, in the order of their numbers, and what they say of its text.

    Args:
        notices: to be said before the answer begins.
        quoted: what an answer without a model says; default: the passages, quoted.
    """

    def __init__(
        self,
        backend: Backend,
        mode: GroundingMode,
        passages: Sequence[Passage],
        language: str,
        notices: Sequence[str] = (),
        quoted: str | None = None,
    ) -> None:
        self._backend = backend
        self._passages = tuple(passages)
        self._language = language
        self._text = quoted
        is_without = mode != "off" and not passages
        self.mode = mode
        self.notices = (*notices, *([NO_SOURCE] if is_without else []))
        # What a generated answer begins with.
        self.opening = f"{self._quoted}\n\n" if is_without and mode == "cite" else ""

    @functools.cached_property
    def _quoted(self) -> str:
        return quote(self._passages, self._language) if self._text is None else self._text

    @functools.cached_property
    def _written(self) -> MarkedText:
        return MarkedText(self._passages)  # it reads them: only where a model writes

    @property
    def is_on(self) -> bool:
        return self.mode != "off"

    @property
    def citations(self) -> list[CitationReply]:
        return [CitationReply.of(p, number) for number, p in enumerate(self._passages, 1)]

    def events(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """Yield the events of the answer."""
        if self.mode == "quote":
            return self._quotation(call)
        if self.mode == "cite":
            texts = [SourceText(p.title, p.text) for p in self._passages]
            room = room_for_passages(call.turns, self._backend.clinic.max_input_tokens)
            call = replace(call, turns=with_passages(call.turns, texts, max_chars=room))
        return self._backend.generate(call)

    async def _quotation(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        yield TokenEvent(call.request_id, self._quoted, 0, 0, Timings(), FinishReason.STOP)

    def marked(self, event: TokenEvent) -> TokenEvent:
        """Return an event of the answer with the markers of what the passages support."""
        if self.mode != "cite":
            return event
        text = self._written.add(event.text)
        if event.finish_reason is not None:
            text += self._written.end()
        return replace(event, text=text)

    def verdict(self) -> Verdict:
        """Return what the check of the answer gave, which has ended."""
        if self.mode != "cite":
            return Verdict()
        found = tuple(self._written.support)
        if not self._passages:
            return Verdict(found).after(self.opening)
        # What states nothing that could be checked, such as "Rest", cites nothing either.
        share = unsupported_share(found) if found else 1.0
        self._backend.references.observe_unsupported(share)
        if share > self._backend.limits.references.max_unsupported:
            return Verdict((), self._quoted)
        return Verdict(found)


def markers(text: str, citations: Sequence[CitationReply]) -> list[tuple[int, int, CitationReply]]:
    """Return start, end and citation of each marker in a text, such as [1]."""
    by_number = {citation.number: citation for citation in citations}
    return [
        (*found.span(), by_number[int(found[1])])
        for found in MARKER.finditer(text)
        if int(found[1]) in by_number
    ]
