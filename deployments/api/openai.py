"""POST /v1/chat/completions and /v1/completions: OpenAI's shape around the same answers."""

import time
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from adapters.prompting import Message
from deployments.api.checks import (
    check_characters,
    check_known,
    check_length,
    check_text,
    sampling_of,
)
from deployments.api.middleware import charge, read_request, request_id_of, session_id_of
from deployments.api.openai_replies import OpenAIReply
from deployments.api.protocol import ApiError, ChatRequest, CompletionRequest, OpenAIRequest
from deployments.api.replies import version_of
from deployments.api.streaming import DONE, AnswerStream, EventStream, Generation, error_body, sse
from deployments.messages import Backend, GenerateRequest
from router.policy import Route


class OpenAIEndpoints:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def chat(self, request: Request) -> Response:
        accepted_at = time.time()
        limits = self._backend.limits
        asked = await read_request(request, ChatRequest, limits.max_body_bytes)
        turns = _chat_turns(asked, limits.max_question_chars)
        return await self._answered("chat.completion", request, asked, turns, accepted_at)

    async def completions(self, request: Request) -> Response:
        accepted_at = time.time()
        limits = self._backend.limits
        asked = await read_request(request, CompletionRequest, limits.max_body_bytes)
        check_text("prompt", asked.prompt, max_chars=limits.max_question_chars)
        turns = (Message("user", asked.prompt),)
        return await self._answered("text_completion", request, asked, turns, accepted_at)

    async def _answered(
        self,
        kind: str,
        request: Request,
        asked: OpenAIRequest,
        turns: tuple[Message, ...],
        accepted_at: float,
    ) -> Response:
        include_usage = _includes_usage(asked)
        clinic = self._backend.clinic
        check_known("model", asked.model, clinic.model_names)
        sampling = sampling_of(asked, clinic)
        request_id, session_id = request_id_of(request), session_id_of(request)
        started = time.perf_counter()
        route = await self._route(asked.model, turns)
        route_s = time.perf_counter() - started
        clinic = self._backend.clinic.for_session(session_id)  # after the wait for the router
        call = GenerateRequest(
            request_id=request_id,
            turns=turns,
            adapter=route.adapter,
            sampling=sampling,
            stream=bool(asked.stream),
            answer_language=self._backend.answer_language(route),
            deadline_at=accepted_at + self._backend.limits.max_timeout_s,
            session_id=session_id,
            adapter_version=version_of(route.adapter, clinic),
        )
        reply = OpenAIReply(
            kind, request_id, int(accepted_at), route, clinic, include_usage=include_usage
        )
        answer = Generation(self._backend, call, route.specialty, route.confidence)
        if asked.stream:
            return await self._streamed(request, answer, reply, route_s, include_usage)
        try:
            answered = await answer.whole()
        finally:
            charge(request, answer.num_tokens)
        return JSONResponse(reply.whole(answered.text, answered.event, route_s))

    async def _streamed(
        self,
        request: Request,
        answer: Generation,
        reply: OpenAIReply,
        route_s: float,
        include_usage: bool,
    ) -> Response:
        stream = AnswerStream([answer])
        await stream.begin()

        async def close() -> None:
            await stream.close()
            charge(request, answer.num_tokens)

        body = _chunks(stream, reply, route_s, request_id_of(request), include_usage)
        return EventStream(body, close=close)

    async def _route(self, model: str, turns: tuple[Message, ...]) -> Route:
        user_turns = [turn.content for turn in turns if turn.role == "user"]
        if model == "auto":
            return (await self._backend.classify([user_turns]))[0]
        card = self._backend.clinic.adapter(model)
        return self._backend.explicit(card.specialty if card else None, user_turns[-1])


async def _chunks(
    stream: AnswerStream, reply: OpenAIReply, route_s: float, request_id: str, include_usage: bool
) -> AsyncGenerator[str, None]:
    yield sse(reply.opening())
    async for piece in stream:
        if piece.failure is not None:
            yield sse(error_body(piece.failure, request_id))
            return
        if piece.text:
            yield sse(reply.piece(piece.text))
        if piece.event is not None:
            yield sse(reply.closing(piece.event, route_s))
            if include_usage:
                yield sse(reply.usage(piece.event))
    yield DONE


def _includes_usage(asked: OpenAIRequest) -> bool:
    """Whether a stream ends in a chunk with the usage."""
    if asked.stream_options is None:
        return False
    if not asked.stream:
        raise ApiError(
            400,
            "conflicting_fields",
            "stream_options: only with stream: true; leave it out, or set stream",
            param="stream_options",
        )
    return asked.stream_options.include_usage


def _chat_turns(asked: ChatRequest, max_chars: int) -> tuple[Message, ...]:
    """Messages -> turns; a client's system message may only come first."""
    turns = []
    for position, message in enumerate(asked.messages):
        role = "system" if message.role == "developer" else message.role
        if role == "system" and position > 0:
            raise ApiError(
                400,
                "invalid_value",
                f"messages.{position}.role: '{message.role}' is only allowed as first message",
                param=f"messages.{position}.role",
            )
        check_characters(f"messages.{position}.content", message.text)
        turns.append(Message(role, message.text))
    if turns[-1].role != "user":
        raise ApiError(
            400,
            "invalid_value",
            f"messages: the last one has role '{turns[-1].role}': it must be the user's",
            param="messages",
        )
    check_length("messages", sum(len(turn.content) for turn in turns), max_chars=max_chars)
    for position, turn in enumerate(turns):
        if turn.role == "user":
            check_text(f"messages.{position}.content", turn.content, max_chars=max_chars)
    return tuple(turns)
