"""POST /v1/chat/completions and /v1/completions: OpenAI's shape around the same answers."""

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import MappingProxyType

from starlette.requests import Request
from starlette.responses import Response

from adapters.prompting import Message
from deployments.api.access.admission import check_capacity
from deployments.api.errors import ApiError
from deployments.api.generation import Completed, Generation
from deployments.api.grounding import Found, find, mode_of
from deployments.api.middleware import request_id_of, session_id_of, tenant_of
from deployments.api.openai.answer import OpenAIAnswer
from deployments.api.openai.request import (
    chat_turns,
    check_choices,
    checked_mode,
    continued_prompts,
    in_openais_words,
    includes_usage,
    is_above_limit,
    of_choice,
    openai_engine_error,
    prompt_texts,
    sampling_of,
)
from deployments.api.openai.structure import structure_of
from deployments.api.protocol.ask import StreamErrorEvent
from deployments.api.protocol.base import json_response
from deployments.api.protocol.openai import ChatRequest, CompletionRequest, OpenAIRequest
from deployments.api.request_body import check_known, has_latin_letter, read_request
from deployments.api.streaming import DONE, AnswerStream, EventStream, charge, sse
from deployments.engine.request import TokenEvent
from deployments.messages import Backend, GenerateRequest
from deployments.setting_sections import GroundingMode
from router.policy import Route

# The questions of a request by their path in the body.
_Conversations = dict[str, tuple[Message, ...]]


class OpenAIEndpoints:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def chat(self, request: Request) -> Response:
        accepted_at, limits = time.time(), self._backend.limits
        try:
            asked = await read_request(request, ChatRequest, limits.max_body_bytes)
            turns = chat_turns(asked, limits.max_question_chars)
        except ApiError as error:
            raise in_openais_words(error, "messages") from None
        return await self._answered(request, asked, {"messages": turns}, accepted_at)

    async def completions(self, request: Request) -> Response:
        accepted_at, limits = time.time(), self._backend.limits
        try:
            asked = await read_request(request, CompletionRequest, limits.max_body_bytes)
            continued = continued_prompts(asked, limits.max_question_chars, limits.max_prompts)
            texts = {} if continued else await prompt_texts(asked, self._backend)
        except ApiError as error:
            raise in_openais_words(error, error.param or "prompt") from None
        conversations: _Conversations = {
            path: (Message("user", text),) for path, text in texts.items()
        }
        conversations |= {path: () for path in continued}
        return await self._answered(request, asked, conversations, accepted_at, continued)

    async def _answered(
        self,
        request: Request,
        asked: OpenAIRequest,
        conversations: _Conversations,
        accepted_at: float,
        continued: Mapping[str, str | tuple[int, ...]] = MappingProxyType({}),
    ) -> Response:
        answers, reply = await self.prepared(request, asked, conversations, accepted_at, continued)
        if asked.stream:
            stream = AnswerStream(answers, reply.advice, all_needed=True)
            await stream.begin()
            return EventStream(request, _chunks(stream, reply), stream)
        return await _whole(request, answers, reply)

    async def prepared(
        self,
        request: Request,
        asked: OpenAIRequest,
        conversations: _Conversations,
        accepted_at: float,
        continued: Mapping[str, str | tuple[int, ...]] = MappingProxyType({}),
    ) -> tuple[list[Generation], OpenAIAnswer]:
        """Route the questions and find their passages; return the answers, not yet begun, and the
        reply that they are to become.

        Args:
            continued: what is no question but continued as it stands, by its path; its
                conversation is empty.

        Raises:
            ApiError: the request is refused.
        """
        include_usage = includes_usage(asked)
        clinic = self._backend.clinic
        check_known("model", asked.model_name, clinic.model_names)
        found_structure = await structure_of(asked)
        structure, grammar = found_structure or (None, None)
        sampling = sampling_of(asked, clinic, grammar)
        check_choices(asked.n, len(conversations), self._backend.limits.max_prompts)
        request_id, session_id = request_id_of(request), session_id_of(request)
        is_named = asked.model_name != "auto"
        usual = mode_of(self._backend, asked.grounding, is_named=is_named)
        mode = checked_mode(asked, usual)
        if mode != "quote":
            check_capacity(self._backend, self._backend.limits.max_timeout_s)
        turns_of = list(conversations.values())
        (routes, route_s), found = await asyncio.gather(
            self._timed_routes(asked.model_name, turns_of), self._found(asked, mode, turns_of)
        )
        clinic = self._backend.clinic.for_session(session_id)  # after the wait for the router
        asked_for = [
            (path, turns, route, clinic.version_of(route.adapter), one, number)
            for (path, turns), route, one in zip(conversations.items(), routes, found, strict=True)
            for number in range(asked.n)
        ]
        answers: list[Generation] = []
        choices = []
        for path, turns, route, version, passages, number in asked_for:
            sources = passages.for_specialty(self._backend, route.specialty, route)
            call = GenerateRequest(
                request_id=request_id if len(asked_for) == 1 else f"{request_id}.{len(answers)}",
                turns=turns,
                adapter=route.adapter,
                sampling=of_choice(sampling, number),
                stream=bool(asked.stream),
                answer_language=self._backend.answer_language(route),
                deadline_at=accepted_at + self._backend.limits.max_timeout_s,
                session_id=session_id,
                adapter_version=version,
                may_shorten=True,
                continues=continued.get(path),
                tenant=tenant_of(request),
            )
            explain = functools.partial(openai_engine_error, param=path, structure=structure)
            about = (sources, route.specialty, route.confidence, explain)
            answers.append(Generation(self._backend, call, *about))
            choices.append((route, version, sources))
        reply = OpenAIAnswer(
            request_id,
            int(accepted_at),
            choices,
            route_s,
            num_of_prompt=asked.n,
            sampling=sampling,
            is_lowered=is_above_limit(asked, clinic),
            is_chat=isinstance(asked, ChatRequest),
            include_usage=include_usage,
            is_without_references=mode != usual and not asked.is_echoed,
        )
        return answers, reply

    async def _found(
        self, asked: OpenAIRequest, mode: GroundingMode, conversations: Sequence[Sequence[Message]]
    ) -> list[Found]:
        is_asked_for = asked.grounding is not None
        return await asyncio.gather(
            *(
                find(self._backend, mode, _users(turns), is_asked_for=is_asked_for)
                for turns in conversations
            )
        )

    async def _timed_routes(
        self, model: str, conversations: Sequence[Sequence[Message]]
    ) -> tuple[list[Route], float]:
        """Return the routes, and the seconds that they took."""
        started = time.perf_counter()
        routes = await self._routes(model, conversations)
        return routes, time.perf_counter() - started

    async def _routes(self, model: str, conversations: Sequence[Sequence[Message]]) -> list[Route]:
        asked = [list(filter(has_latin_letter, _users(turns))) or [""] for turns in conversations]
        if model == "auto":  # "42" alone would be misrouted
            return await self._backend.classify(asked)
        card = self._backend.clinic.adapter(model)
        specialty = card.specialty if card else None
        return [self._backend.explicit(specialty, user_turns) for user_turns in asked]


def _users(turns: Sequence[Message]) -> list[str]:
    return [turn.content for turn in turns if turn.role == "user"]


async def _whole(request: Request, answers: Sequence[Generation], reply: OpenAIAnswer) -> Response:
    return json_response(reply.whole(await completed_of(request, answers)))


async def completed_of(request: Request, answers: Sequence[Generation]) -> list[Completed]:
    """Return all the answers, and charge the caller for them; the first failure cancels the others
    and is raised."""
    try:
        return await _all_of(answers)
    finally:
        charge(request, sum(answer.num_tokens for answer in answers))


async def _all_of(answers: Sequence[Generation]) -> list[Completed]:
    if len(answers) == 1:
        return [await answers[0].whole()]
    tasks = [asyncio.create_task(answer.whole()) for answer in answers]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _chunks(stream: AnswerStream, reply: OpenAIAnswer) -> AsyncGenerator[str, None]:
    for choice in range(reply.num_choices):
        yield sse(reply.opening(choice))
    ended: dict[int, TokenEvent] = {}
    async for item in stream:
        if item.failure is not None:
            yield sse(StreamErrorEvent(error=item.failure.reply(request_id=reply.request_id)))
            return
        if item.text or item.scores:
            yield sse(reply.text(item.opinion, item.text, item.scores))
        if item.event is not None:
            ended[item.opinion] = item.event
            yield sse(reply.closing(item))
    if reply.include_usage:
        yield sse(reply.usage(ended))
    yield DONE
