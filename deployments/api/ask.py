"""POST /ask: one question, one answer or several opinions, whole or as server-sent events.

event: route      who answers, and why
event: citations  with grounding: {"opinion", "citations"}, once for each opinion
event: token      {"opinion": 0, "text": "..."}
event: answer     one opinion is complete: {"opinion", "finish_reason", "usage", "timings_ms"},
                  or failed: {"opinion", "error"}
event: done       the end: {"id"};  or  event: error  {"error": {..., "request_id"}}
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from adapters.prompting import Message
from deployments.api.access.admission import check_capacity
from deployments.api.errors import ApiError, internal_error, invalid, log_unexpected
from deployments.api.generation import Completed, Generation
from deployments.api.grounding import Sources, find, mode_of
from deployments.api.middleware import request_id_of, session_id_of, tenant_of
from deployments.api.protocol import ask as bodies
from deployments.api.protocol.base import (
    ending_fields,
    json_response,
    notice_fields,
    rounded,
    route_fields,
)
from deployments.api.request_body import (
    check_known,
    check_text,
    max_tokens_of,
    read_request,
    timeout_of,
)
from deployments.api.streaming import AnswerStream, EventStream, StreamItem, charge, sse
from deployments.engine.request import SamplingParams
from deployments.messages import Backend, GenerateRequest, ServedModels
from deployments.setting_sections import GroundingMode
from router.policy import Reason, Route


@dataclass(frozen=True, slots=True)
class _Consultation:
    """A question and those who answer it; `heads[i]` says who gives `answers[i]`."""

    request_id: str
    session_id: str | None
    route: Route
    route_s: float
    heads: Sequence[bodies.OpinionHead]
    answers: Sequence[Generation]
    is_consulted: bool

    @property
    def ids(self) -> dict[str, Any]:
        return {"id": self.request_id, "session_id": self.session_id}

    def route_fields(self, head: bodies.OpinionHead) -> dict[str, Any]:
        """Return the fields of AnsweredRoute: the route's, with who answers taken from `head`."""
        answering = {key: getattr(head, key) for key in ("specialty", "adapter", "adapter_version")}
        return route_fields(self.route) | answering | notice_fields(self.notices(head))

    def sources(self, head: bodies.OpinionHead) -> Sources:
        return self.answers[head.opinion].sources

    def notices(self, head: bodies.OpinionHead, result: Completed | None = None) -> list[str]:
        """Return the opinion's notices; without `result`, those that are known as it begins."""
        late = result.verdict.notices if result else ()
        return [*self.route.notices, *self.sources(head).notices, *late]


class AskEndpoint:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def __call__(self, request: Request) -> Response:
        accepted_at = time.time()
        limits = self._backend.limits
        asked = await read_request(request, bodies.AskRequest, limits.max_body_bytes)
        check_text("question", asked.question, max_chars=limits.max_question_chars)
        _check_conflicts(asked)
        if asked.specialty is not None:
            check_known("specialty", asked.specialty, self._backend.clinic.specialties)
        clinic = self._backend.clinic
        sampling = clinic.sampling(max_tokens_of("max_tokens", asked.max_tokens, clinic))
        timeout_s = timeout_of(asked.timeout_s, limits.max_timeout_s)
        deadline_at = accepted_at + timeout_s
        session_id = session_id_of(request, asked.session_id)
        ids = request_id_of(request), session_id, tenant_of(request)
        mode = _mode(self._backend, asked)
        if mode != "quote":
            check_capacity(self._backend, timeout_s)
        consultation = await self._consultation(ids, asked, mode, sampling, deadline_at)
        if not asked.stream:
            return await _whole(request, consultation)
        advice = [consultation.route.advice] * len(consultation.answers)
        stream = AnswerStream(consultation.answers, advice)
        await stream.begin()
        return EventStream(request, _events(consultation, stream), stream)

    async def _consultation(
        self,
        ids: tuple[str, str | None, str | None],
        asked: bodies.AskRequest,
        mode: GroundingMode,
        sampling: SamplingParams,
        deadline_at: float,
    ) -> _Consultation:
        request_id, session_id, tenant = ids
        is_asked_for = asked.grounding is not None
        (route, route_s), found = await asyncio.gather(
            self._route(asked),
            find(self._backend, mode, [asked.question], is_asked_for=is_asked_for),
        )
        clinic = self._backend.clinic.for_session(session_id)
        heads = _heads(self._backend, clinic, route, asked)

        def generation(head: bodies.OpinionHead) -> Generation:
            call = GenerateRequest(
                request_id=request_id if len(heads) == 1 else f"{request_id}.{head.opinion}",
                turns=(Message("user", asked.question),),
                adapter=head.adapter,
                sampling=sampling,
                stream=bool(asked.stream),
                answer_language=self._backend.answer_language(route),
                deadline_at=deadline_at,
                session_id=session_id,
                adapter_version=head.adapter_version,
                tenant=tenant,
            )
            confidence = None if head.opinion else route.confidence
            sources = found.for_specialty(self._backend, head.specialty, route)
            return Generation(self._backend, call, sources, head.specialty, confidence)

        answers = [generation(head) for head in heads]
        return _Consultation(
            request_id, session_id, route, route_s, heads, answers, asked.consult is not None
        )

    async def _route(self, asked: bodies.AskRequest) -> tuple[Route, float]:
        """Return the route, and the seconds that it took."""
        started = time.perf_counter()
        if asked.specialty is not None:
            route = self._backend.explicit(asked.specialty, [asked.question])
        else:
            route = (await self._backend.classify([[asked.question]], asked.min_confidence))[0]
        return route, time.perf_counter() - started


def _mode(backend: Backend, asked: bodies.AskRequest) -> GroundingMode:
    is_named = asked.specialty is not None or asked.consult is not None
    return mode_of(backend, asked.grounding, is_named=is_named)


def _heads(
    backend: Backend, clinic: ServedModels, route: Route, asked: bodies.AskRequest
) -> list[bodies.OpinionHead]:
    """Return who answers: the routed specialist or, with consult, the most probable specialists
    that have an adapter. Where there is none, and out of scope, it is the base model alone."""
    chosen: list[tuple[str | None, float | None, str | None]]
    if asked.consult is None:
        chosen = [(route.specialty, route.confidence if route.specialty else None, route.adapter)]
    elif route.reason is Reason.OUT_OF_SCOPE or not route.specialists:
        chosen = [(None, None, None)]
    else:
        chosen = [
            (s.specialty, s.probability, backend.explicit(s.specialty, [asked.question]).adapter)
            for s in route.specialists[: asked.consult]
        ]
    return [
        bodies.OpinionHead(
            opinion=opinion,
            specialty=specialty,
            probability=rounded(probability),
            adapter=adapter,
            adapter_version=clinic.version_of(adapter),
        )
        for opinion, (specialty, probability, adapter) in enumerate(chosen)
    ]


async def _whole(request: Request, consultation: _Consultation) -> Response:
    try:
        results = await asyncio.gather(*map(_settled, consultation.answers))
    finally:
        charge(request, sum(answer.num_tokens for answer in consultation.answers))
    results = _beginning_with(consultation.route.advice, results)
    opinions = list(zip(consultation.heads, results, strict=True))
    answered = [(head, result) for head, result in opinions if isinstance(result, Completed)]
    if not answered:
        assert isinstance(results[0], ApiError), "neither an answer nor a failure"
        raise results[0]
    head, first = answered[0]
    route_s = consultation.route_s
    reply = bodies.AskReply(
        **consultation.ids,
        answer=first.text,
        **(consultation.route_fields(head) | notice_fields(consultation.notices(head, first))),
        **ending_fields(first.event, route_s),
        **_grounded(consultation, head, first),
    )
    if consultation.is_consulted:
        reply.opinions = [_opinion(consultation, head, result) for head, result in opinions]
    return json_response(reply)


def _grounded(
    consultation: _Consultation, head: bodies.OpinionHead, result: Completed
) -> dict[str, Any]:
    """Return the fields that grounding adds to an answer; {} where it is off."""
    sources = consultation.sources(head)
    if not sources.is_on:
        return {}
    return {"citations": sources.citations, "support": result.verdict.reply}


def _beginning_with(
    advice: str, results: Sequence[Completed | ApiError]
) -> list[Completed | ApiError]:
    """Put the advice before the first answer that there is: the one at the top of the reply."""
    found = list(results)
    for i, result in enumerate(found):
        if isinstance(result, Completed):
            found[i] = result.after(advice)
            break
    return found


def _opinion(
    consultation: _Consultation, head: bodies.OpinionHead, result: Completed | ApiError
) -> bodies.OpinionReply:
    if isinstance(result, ApiError):
        ending: dict[str, Any] = dict.fromkeys(("answer", "usage", "timings_ms"))
        ending |= {"finish_reason": "error", "error": result.reply()}
    else:
        ending = {"answer": result.text, **ending_fields(result.event, consultation.route_s)}
        ending |= {"error": None, **_grounded(consultation, head, result)}
        if consultation.sources(head).is_on:
            ending["notices"] = consultation.notices(head, result)
    return bodies.OpinionReply(**dict(head), **ending)


async def _settled(answer: Generation) -> Completed | ApiError:
    """Return the answer, or why it failed: the other opinions stand."""
    try:
        return await answer.whole()
    except ApiError as error:
        return error
    except Exception as error:
        log_unexpected(error, "/ask")
        return internal_error()


async def _events(consultation: _Consultation, stream: AnswerStream) -> AsyncGenerator[str, None]:
    request_id, heads = consultation.request_id, consultation.heads
    opening = bodies.AskRouteEvent(
        **consultation.ids, **consultation.route_fields(heads[0]), opinions=list(heads)
    )
    yield sse(opening, "route")
    for head in heads:
        if consultation.sources(head).is_on:
            citations = consultation.sources(head).citations
            event = bodies.AskCitationsEvent(opinion=head.opinion, citations=citations)
            yield sse(event, "citations")
    failures: list[ApiError] = []
    async for item in stream:
        if item.text:
            yield sse(bodies.AskTokenEvent(opinion=item.opinion, text=item.text), "token")
        if item.failure is not None:
            failures.append(item.failure)
            error = item.failure.reply(request_id=request_id)
            yield sse(bodies.AskFailedEvent(opinion=item.opinion, error=error), "answer")
        elif item.event is not None:
            yield sse(_answer_event(consultation, item), "answer")
    if len(failures) == len(consultation.answers):
        yield sse(bodies.StreamErrorEvent(error=failures[0].reply(request_id=request_id)), "error")
    else:
        yield sse(bodies.AskDoneEvent(id=request_id), "done")


def _answer_event(consultation: _Consultation, item: StreamItem) -> bodies.AskAnswerEvent:
    assert item.event is not None
    head, verdict = consultation.heads[item.opinion], item.verdict
    ending = ending_fields(item.event, consultation.route_s)
    if consultation.sources(head).is_on:
        ending["support"] = verdict.reply
    if verdict.text is not None:
        notices = [*consultation.notices(head), *verdict.notices]
        ending |= {"answer": verdict.text, **notice_fields(notices)}
    return bodies.AskAnswerEvent(opinion=item.opinion, **ending)


def _check_conflicts(asked: bodies.AskRequest) -> None:
    """Refuse fields that would have no effect together with `specialty`."""
    if asked.specialty is None:
        return
    for param in ("consult", "min_confidence"):
        if getattr(asked, param) is not None:
            message = f"with specialty the router is not asked; send {param} or specialty"
            raise invalid(param, message, code="conflicting_fields")
