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
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from adapters.prompting import Message
from deployments.api.checks import check_known, check_text, max_tokens_of, timeout_of
from deployments.api.middleware import (
    charge,
    internal_error,
    log_unexpected,
    read_request,
    request_id_of,
    session_id_of,
)
from deployments.api.opinions import consulted, routed
from deployments.api.protocol import ApiError, AskRequest
from deployments.api.replies import ask_reply, ending_reply, opening_reply, opinion_head, version_of
from deployments.api.streaming import (
    AnswerStream,
    Completed,
    EventStream,
    Generation,
    error_body,
    sse,
)
from deployments.engine.request import SamplingParams
from deployments.messages import Backend, GenerateRequest
from router.policy import Route


@dataclass(frozen=True, slots=True)
class _Consultation:
    """A question on its way to those who answer it; `heads[i]` says who gives `answers[i]`."""

    request_id: str
    session_id: str | None
    route: Route
    route_s: float
    heads: Sequence[dict[str, Any]]
    answers: Sequence[Generation]
    is_consulted: bool

    @property
    def num_tokens(self) -> int:
        return sum(answer.num_tokens for answer in self.answers)


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
        session_id = session_id_of(request, asked.session_id)
        consultation = await self._consultation(
            request_id_of(request), session_id, asked, sampling, deadline_at
        )
        if asked.stream:
            return await self._streamed(request, consultation)
        return await self._whole(request, consultation)

    async def _consultation(
        self,
        request_id: str,
        session_id: str | None,
        asked: AskRequest,
        sampling: SamplingParams,
        deadline_at: float,
    ) -> _Consultation:
        started = time.perf_counter()
        route = await self._route(asked)
        route_s = time.perf_counter() - started
        if asked.consult is None:
            speakers = [routed(route)]
        else:
            speakers = consulted(self._backend, route, asked.question, asked.consult)
        clinic = self._backend.clinic.for_session(session_id)
        calls = [
            GenerateRequest(
                request_id=request_id if len(speakers) == 1 else f"{request_id}.{opinion}",
                turns=(Message("user", asked.question),),
                adapter=speaker.adapter,
                sampling=sampling,
                stream=asked.stream,
                answer_language=self._backend.answer_language(route),
                deadline_at=deadline_at,
                session_id=session_id,
                adapter_version=version_of(speaker.adapter, clinic),
            )
            for opinion, speaker in enumerate(speakers)
        ]
        return _Consultation(
            request_id,
            session_id,
            route,
            route_s,
            [opinion_head(opinion, s, clinic) for opinion, s in enumerate(speakers)],
            [
                Generation(self._backend, call, s.specialty, None if opinion else route.confidence)
                for opinion, (call, s) in enumerate(zip(calls, speakers, strict=True))
            ],
            asked.consult is not None,
        )

    async def _route(self, asked: AskRequest) -> Route:
        if asked.specialty is not None:
            return self._backend.explicit(asked.specialty, asked.question)
        return (await self._backend.classify([[asked.question]], asked.min_confidence))[0]

    async def _whole(self, request: Request, consultation: _Consultation) -> Response:
        try:
            results = await asyncio.gather(*map(_settled, consultation.answers))
        finally:
            charge(request, consultation.num_tokens)
        standing = [result for result in results if isinstance(result, Completed)]
        if not standing:
            assert isinstance(results[0], ApiError), "neither an answer nor a failure"
            raise results[0]
        reply = ask_reply(
            consultation.request_id,
            consultation.session_id,
            consultation.route,
            list(zip(consultation.heads, results, strict=True)),
            consultation.route_s,
            is_consulted=consultation.is_consulted,
        )
        return JSONResponse(reply)

    async def _streamed(self, request: Request, consultation: _Consultation) -> Response:
        stream = AnswerStream(consultation.answers)
        await stream.begin()

        async def close() -> None:
            await stream.close()
            charge(request, consultation.num_tokens)

        return EventStream(_events(consultation, stream), close=close)


async def _settled(answer: Generation) -> Completed | ApiError:
    """The answer, or why there is none: the other opinions stand."""
    try:
        return await answer.whole()
    except ApiError as error:
        return error
    except Exception as error:
        log_unexpected(error, "/ask")
        return internal_error()


async def _events(consultation: _Consultation, stream: AnswerStream) -> AsyncGenerator[str, None]:
    request_id = consultation.request_id
    opening = opening_reply(
        request_id, consultation.session_id, consultation.route, consultation.heads
    )
    yield sse(opening, "route")
    failures: list[ApiError] = []
    async for piece in stream:
        if piece.text:
            yield sse({"opinion": piece.opinion, "text": piece.text}, "token")
        if piece.failure is not None:
            failures.append(piece.failure)
            failed = {"opinion": piece.opinion, **error_body(piece.failure, request_id)}
            yield sse(failed, "answer")
        elif piece.event is not None:
            ending = ending_reply(piece.event, consultation.route_s)
            yield sse({"opinion": piece.opinion, **ending}, "answer")
    if len(failures) == len(consultation.answers):
        yield sse(error_body(failures[0], request_id), "error")
    else:
        yield sse({"id": request_id}, "done")


def _check_conflicts(asked: AskRequest) -> None:
    """Fields that would be without effect beside `specialty` are refused, not ignored."""
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
