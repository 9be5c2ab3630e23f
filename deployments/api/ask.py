"""POST /ask: one question, one answer or several opinions, whole or as server-sent events.

event: route    who answers, and why
event: token    {"opinion": 0, "text": "..."}
event: answer   one opinion is complete: {"opinion", "finish_reason", "usage", "timings_ms"},
                or failed: {"opinion", "error"}
event: done     the end: {"id"};  or  event: error  {"error": {..., "request_id"}}
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from deployments.api.checks import check_known, check_text, max_tokens_of, timeout_of
from deployments.api.errors import ApiError, internal_error, log_unexpected
from deployments.api.generation import Completed, Generation
from deployments.api.middleware import request_id_of, session_id_of
from deployments.api.protocol.ask import (
    AskAnswerEvent,
    AskDoneEvent,
    AskFailedEvent,
    AskReply,
    AskRequest,
    AskRouteEvent,
    AskTokenEvent,
    OpinionHead,
    OpinionReply,
    StreamErrorEvent,
)
from deployments.api.protocol.base import ending_fields, json_response, rounded
from deployments.api.request_body import read_request
from deployments.api.streaming import AnswerStream, EventStream, charge, sse
from deployments.engine.request import SamplingParams
from deployments.messages import Backend, GenerateRequest, ServedModels, Turn
from router.policy import Reason, Route


@dataclass(frozen=True, slots=True)
class _Consultation:
    """A question and those who answer it; `heads[i]` says who gives `answers[i]`."""

    request_id: str
    session_id: str | None
    route: Route
    route_s: float
    heads: Sequence[OpinionHead]
    answers: Sequence[Generation]
    is_consulted: bool

    @property
    def ids(self) -> tuple[str, str | None]:
        return self.request_id, self.session_id


class AskEndpoint:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def __call__(self, request: Request) -> Response:
        accepted_at = time.time()
        limits = self._backend.limits
        asked = await read_request(request, AskRequest, limits.max_body_bytes)
        check_text("question", asked.question, max_chars=limits.max_question_chars)
        _check_conflicts(asked)
        if asked.specialty is not None:
            check_known("specialty", asked.specialty, self._backend.clinic.specialties)
        clinic = self._backend.clinic
        sampling = SamplingParams(max_tokens_of("max_tokens", asked.max_tokens, clinic))
        deadline_at = accepted_at + timeout_of(asked.timeout_s, limits.max_timeout_s)
        ids = request_id_of(request), session_id_of(request, asked.session_id)
        consultation = await self._consultation(ids, asked, sampling, deadline_at)
        if not asked.stream:
            return await _whole(request, consultation)
        stream = AnswerStream(consultation.answers)
        await stream.begin()
        return EventStream(request, _events(consultation, stream), stream)

    async def _consultation(
        self,
        ids: tuple[str, str | None],
        asked: AskRequest,
        sampling: SamplingParams,
        deadline_at: float,
    ) -> _Consultation:
        request_id, session_id = ids
        started = time.perf_counter()
        route = await self._route(asked)
        route_s = time.perf_counter() - started
        clinic = self._backend.clinic.for_session(session_id)
        if asked.consult is None:
            heads = [_routed(route, clinic)]
        else:
            heads = _consulted(self._backend, clinic, route, asked.question, asked.consult)
        calls = [
            GenerateRequest(
                request_id=request_id if len(heads) == 1 else f"{request_id}.{head.opinion}",
                turns=(Turn("user", asked.question),),
                adapter=head.adapter,
                sampling=sampling,
                stream=asked.stream,
                answer_language=self._backend.answer_language(route),
                deadline_at=deadline_at,
                session_id=session_id,
                adapter_version=head.adapter_version,
            )
            for head in heads
        ]
        answers = [
            Generation(
                self._backend, call, head.specialty, None if head.opinion else route.confidence
            )
            for head, call in zip(heads, calls, strict=True)
        ]
        return _Consultation(
            request_id, session_id, route, route_s, heads, answers, asked.consult is not None
        )

    async def _route(self, asked: AskRequest) -> Route:
        if asked.specialty is not None:
            return self._backend.explicit(asked.specialty, asked.question)
        return (await self._backend.classify([[asked.question]], asked.min_confidence))[0]


def _routed(route: Route, clinic: ServedModels) -> OpinionHead:
    """Return who answers when nobody else is consulted."""
    probability = route.confidence if route.specialty else None
    return _head(0, route.specialty, probability, route.adapter, clinic)


def _consulted(
    backend: Backend, clinic: ServedModels, route: Route, question: str, num_opinions: int
) -> list[OpinionHead]:
    """Return the most probable specialists that have an adapter, at most `num_opinions`.

    A question that is out of scope gets the base model alone, as does every question where no
    specialty has an adapter.
    """
    if route.reason is Reason.OUT_OF_SCOPE or not route.specialists:
        return [_head(0, None, None, None, clinic)]
    return [
        _head(
            opinion,
            chosen.specialty,
            chosen.probability,
            backend.explicit(chosen.specialty, question).adapter,
            clinic,
        )
        for opinion, chosen in enumerate(route.specialists[:num_opinions])
    ]


def _head(
    opinion: int,
    specialty: str | None,
    probability: float | None,
    adapter: str | None,
    clinic: ServedModels,
) -> OpinionHead:
    return OpinionHead(
        opinion=opinion,
        specialty=specialty,
        probability=rounded(probability),
        adapter=adapter,
        adapter_version=clinic.version_of(adapter),
    )


async def _whole(request: Request, consultation: _Consultation) -> Response:
    try:
        results = await asyncio.gather(*map(_settled, consultation.answers))
    finally:
        charge(request, sum(answer.num_tokens for answer in consultation.answers))
    opinions = list(zip(consultation.heads, results, strict=True))
    answered = [(head, result) for head, result in opinions if isinstance(result, Completed)]
    if not answered:
        assert isinstance(results[0], ApiError), "neither an answer nor a failure"
        raise results[0]
    head, first = answered[0]
    route_s = consultation.route_s
    reply = AskReply.whole(
        consultation.ids, consultation.route, head, first.text, first.event, route_s
    )
    if consultation.is_consulted:
        reply.opinions = [_opinion(head, result, route_s) for head, result in opinions]
    return json_response(reply)


def _opinion(head: OpinionHead, result: Completed | ApiError, route_s: float) -> OpinionReply:
    if isinstance(result, ApiError):
        return OpinionReply.failed(head, result.reply())
    return OpinionReply.answered(head, result.text, result.event, route_s)


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
    request_id, route_s = consultation.request_id, consultation.route_s
    yield sse(
        AskRouteEvent.opening(consultation.ids, consultation.route, consultation.heads), "route"
    )
    failures: list[ApiError] = []
    async for item in stream:
        if item.text:
            yield sse(AskTokenEvent(opinion=item.opinion, text=item.text), "token")
        if item.failure is not None:
            failures.append(item.failure)
            error = item.failure.reply(request_id=request_id)
            yield sse(AskFailedEvent(opinion=item.opinion, error=error), "answer")
        elif item.event is not None:
            ending = ending_fields(item.event, route_s)
            yield sse(AskAnswerEvent(opinion=item.opinion, **ending), "answer")
    if len(failures) == len(consultation.answers):
        yield sse(StreamErrorEvent(error=failures[0].reply(request_id=request_id)), "error")
    else:
        yield sse(AskDoneEvent(id=request_id), "done")


def _check_conflicts(asked: AskRequest) -> None:
    """Refuse fields that would have no effect together with `specialty`."""
    if asked.specialty is None:
        return
    for param in ("consult", "min_confidence"):
        if getattr(asked, param) is not None:
            raise ApiError(
                400,
                "conflicting_fields",
                f"{param}: with specialty the router is not asked; send {param} or specialty",
                param=param,
            )
