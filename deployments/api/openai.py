"""POST /v1/chat/completions and /v1/completions: OpenAI's shape around the same answers."""

import time
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response

from adapters.prompting import Message
from deployments.api.admission import check_capacity
from deployments.api.errors import invalid
from deployments.api.generation import Generation
from deployments.api.middleware import request_id_of, session_id_of
from deployments.api.openai_answer import OpenAIAnswer
from deployments.api.protocol.ask import StreamErrorEvent
from deployments.api.protocol.base import json_response
from deployments.api.protocol.openai import ChatRequest, CompletionRequest, OpenAIRequest
from deployments.api.request_body import (
    check_characters,
    check_known,
    check_length,
    check_text,
    has_latin_letter,
    max_tokens_of,
    read_request,
)
from deployments.api.streaming import DONE, AnswerStream, EventStream, charge, sse
from deployments.engine.request import SamplingParams
from deployments.messages import Backend, GenerateRequest, ServedModels
from router.policy import Route


class OpenAIEndpoints:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def chat(self, request: Request) -> Response:
        accepted_at = time.time()
        limits = self._backend.limits
        asked = await read_request(request, ChatRequest, limits.max_body_bytes)
        turns = _chat_turns(asked, limits.max_question_chars)
        return await self._answered(request, asked, turns, accepted_at)

    async def completions(self, request: Request) -> Response:
        accepted_at = time.time()
        limits = self._backend.limits
        asked = await read_request(request, CompletionRequest, limits.max_body_bytes)
        check_text("prompt", asked.prompt, max_chars=limits.max_question_chars)
        turns = (Message("user", asked.prompt),)
        return await self._answered(request, asked, turns, accepted_at)

    async def _answered(
        self, request: Request, asked: OpenAIRequest, turns: tuple[Message, ...], accepted_at: float
    ) -> Response:
        include_usage = _includes_usage(asked)
        clinic = self._backend.clinic
        check_known("model", asked.model_name, clinic.model_names)
        sampling = sampling_of(asked, clinic)
        request_id, session_id = request_id_of(request), session_id_of(request)
        check_capacity(self._backend, self._backend.limits.max_timeout_s)
        started = time.perf_counter()
        route = await self._route(asked.model_name, turns)
        route_s = time.perf_counter() - started
        clinic = self._backend.clinic.for_session(session_id)  # after the wait for the router
        version = clinic.version_of(route.adapter)
        call = GenerateRequest(
            request_id=request_id,
            turns=turns,
            adapter=route.adapter,
            sampling=sampling,
            stream=bool(asked.stream),
            answer_language=self._backend.answer_language(route),
            deadline_at=accepted_at + self._backend.limits.max_timeout_s,
            session_id=session_id,
            adapter_version=version,
        )
        reply = OpenAIAnswer(
            request_id,
            int(accepted_at),
            route,
            version,
            route_s,
            is_chat=isinstance(asked, ChatRequest),
            include_usage=include_usage,
        )
        answer = Generation(self._backend, call, route.specialty, route.confidence)
        if asked.stream:
            stream = AnswerStream([answer])
            await stream.begin()
            return EventStream(request, _chunks(stream, reply), stream)
        return await _whole(request, answer, reply)

    async def _route(self, model: str, turns: tuple[Message, ...]) -> Route:
        asked = [turn.content for turn in turns if turn.role == "user"]
        user_turns = list(filter(has_latin_letter, asked))  # "42" alone would be misrouted
        if model == "auto":
            return (await self._backend.classify([user_turns]))[0]
        card = self._backend.clinic.adapter(model)
        return self._backend.explicit(card.specialty if card else None, user_turns[-1])


async def _whole(request: Request, answer: Generation, reply: OpenAIAnswer) -> Response:
    try:
        completed = await answer.whole()
    finally:
        charge(request, answer.num_tokens)
    return json_response(reply.whole(completed.text, completed.event))


async def _chunks(stream: AnswerStream, reply: OpenAIAnswer) -> AsyncGenerator[str, None]:
    yield sse(reply.opening())
    async for item in stream:
        if item.failure is not None:
            yield sse(StreamErrorEvent(error=item.failure.reply(request_id=reply.request_id)))
            return
        if item.text:
            yield sse(reply.text(item.text))
        if item.event is not None:
            yield sse(reply.closing(item.event))
            if reply.include_usage:
                yield sse(reply.usage(item.event))
    yield DONE


def _includes_usage(asked: OpenAIRequest) -> bool:
    """Whether a stream ends in a chunk with the usage.

    Raises:
        ApiError: 400; the usage chunk is asked for without a stream.
    """
    wanted = asked.stream_options is not None and bool(asked.stream_options.include_usage)
    if wanted and not asked.stream:
        message = "only with stream: true; leave it out, or set stream"
        raise invalid("stream_options", message, code="conflicting_fields")
    return wanted


def _chat_turns(asked: ChatRequest, max_chars: int) -> tuple[Message, ...]:
    """Return the turns of the messages.

    Raises:
        ApiError: 400; a system message is not the first, the last message is not the user's, a text
            has a character that is not allowed, or no turn of the user's can be classified.
    """
    turns = []
    for position, message in enumerate(asked.messages):
        role = "system" if message.role == "developer" else message.role
        if role == "system" and position > 0:
            text = f"'{message.role}' is only allowed as first message"
            raise invalid(f"messages.{position}.role", text)
        check_characters(f"messages.{position}.content", message.text)
        turns.append(Message(role, message.text))
    if turns[-1].role != "user":
        text = f"the last one has role '{turns[-1].role}': it must be the user's"
        raise invalid("messages", text)
    check_length("messages", sum(len(turn.content) for turn in turns), max_chars=max_chars)
    to_check = [(i, turn.content) for i, turn in enumerate(turns) if turn.role == "user"]
    if any(has_latin_letter(text) for _, text in to_check):
        # A follow-up such as "42" needs no letter; only an empty last turn asks for nothing.
        to_check = [(i, text) for i, text in to_check[-1:] if not text.strip()]
    for i, text in to_check:
        check_text(f"messages.{i}.content", text, max_chars=max_chars)
    return tuple(turns)


def sampling_of(asked: OpenAIRequest, clinic: ServedModels) -> SamplingParams:
    """Return how tokens are picked: greedily unless a temperature above 0 is given.

    Raises:
        ApiError: 400 naming the field and the limit.
    """
    param, value = asked.num_tokens_asked
    max_tokens = max_tokens_of(param, value, clinic)
    min_tokens = asked.min_tokens or 0
    if min_tokens > max_tokens:
        raise invalid(
            "min_tokens",
            f"{min_tokens} is above the longest answer of {max_tokens} tokens: lower it, or raise "
            f"{param}",
            limit=max_tokens,
        )
    stop = asked.stop_strings
    if "" in stop:
        raise invalid("stop", "holds an empty string")
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=asked.temperature or 0.0,
        top_p=asked.top_p or 1.0,
        seed=asked.seed,
        stop=stop,
        top_k=asked.top_k or 0,
        repetition_penalty=asked.repetition_penalty or 1.0,
        min_tokens=min_tokens,
    )
