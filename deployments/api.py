"""The HTTP face of the clinic: `create_api(backend)` -> Starlette. No ray, no torch.

    POST /ask                    one question, one answer, who answered and why
    POST /route                  classification only
    POST /v1/chat/completions    OpenAI's shape; `model`: auto, an adapter, or base
    POST /v1/completions         the prompt asked as one question
    GET  /v1/models  /healthz  /readyz

Domain errors become HTTP statuses here and nowhere else.
"""

import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as HttpRoute

from deployments.adapter_admin import AdapterAdmin
from deployments.admin_api import admin_routes
from deployments.calls import Backend, Clinic, GenerationCall, Outcome, Turn
from deployments.engine.request import FinishReason, SamplingParams, TokenEvent
from deployments.http_io import (
    Endpoint,
    engine_error,
    guarded,
    http_error,
    internal_error,
    log_unexpected,
    read_body,
    refuse,
    request_id_of,
    session_id_of,
)
from deployments.input_checks import (
    check_characters,
    check_count,
    check_known,
    check_length,
    check_text,
)
from deployments.replies import (
    OpenAIReply,
    ask_reply,
    models_reply,
    route_reply,
)
from deployments.schema import (
    ApiError,
    AskRequest,
    ChatRequest,
    CompletionRequest,
    OpenAIRequest,
    RequestT,
    RouteRequest,
    parse_json,
    parse_request,
)
from router.policy import Route


def create_api(backend: Backend, admin: AdapterAdmin | None = None) -> Starlette:
    """The application. `backend` is the router deployment, or a small one in tests.

    `admin` changes the adapters; None: its paths are not there.
    """
    api = _Api(backend)
    table: list[tuple[str, str, Endpoint]] = [
        ("POST", "/ask", api.ask),
        ("POST", "/route", api.route),
        ("POST", "/v1/chat/completions", api.chat),
        ("POST", "/v1/completions", api.completions),
        ("GET", "/v1/models", api.models),
        ("GET", "/healthz", api.healthz),
        ("GET", "/readyz", api.readyz),
    ]
    routes = [HttpRoute(path, guarded(call), methods=[method]) for method, path, call in table]
    routes += admin_routes(admin) if admin else []
    handlers: dict[Any, Callable[..., Response]] = {
        ApiError: refuse,
        HTTPException: http_error(sorted({route.path for route in routes})),
    }
    return Starlette(routes=routes, exception_handlers=handlers)


class _Api:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def ask(self, request: Request) -> Response:
        asked = await self._read(request, AskRequest)
        check_text("question", asked.question, max_chars=self._backend.limits.max_question_chars)
        sampling = SamplingParams(self._max_tokens("max_tokens", asked.max_tokens))
        request_id = request_id_of(request)
        turns = (Turn("user", asked.question),)
        started = time.perf_counter()
        if asked.specialty is None:
            route = (await self._backend.classify([[asked.question]]))[0]
        else:
            self._check_specialty(asked.specialty)
            route = self._backend.explicit(asked.specialty, asked.question)
        route_s = time.perf_counter() - started
        clinic = self._backend.clinic.for_session(session_id_of(request))
        call = self._call(request_id, turns, route, sampling, clinic, stream=False)
        text, event = await self._whole(call, route)
        body = ask_reply(request_id, route, text, event, clinic, route_s)
        return JSONResponse(body, headers={"x-request-id": request_id})

    async def route(self, request: Request) -> Response:
        asked = await self._read(request, RouteRequest)
        limits = self._backend.limits
        check_count("questions", len(asked.questions), limits.max_questions)
        for position, question in enumerate(asked.questions):
            check_text(f"questions.{position}", question, max_chars=limits.max_question_chars)
        routes = await self._backend.classify([[question] for question in asked.questions])
        for route in routes:
            self._record(route, "routed")
        return JSONResponse(
            {"routes": [route_reply(route) for route in routes]},
            headers={"x-request-id": request_id_of(request)},
        )

    async def chat(self, request: Request) -> Response:
        asked = await self._read(request, ChatRequest)
        turns = self._chat_turns(asked)
        return await self._openai("chat.completion", request, asked, turns)

    async def completions(self, request: Request) -> Response:
        asked = await self._read(request, CompletionRequest)
        check_text("prompt", asked.prompt, max_chars=self._backend.limits.max_question_chars)
        turns = (Turn("user", asked.prompt),)
        return await self._openai("text_completion", request, asked, turns)

    async def models(self, request: Request) -> Response:
        return JSONResponse(models_reply(self._backend.clinic))

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        is_ready, report = await self._backend.readiness()
        status = "ready" if is_ready else "not_ready"
        return JSONResponse({"status": status, **report}, status_code=200 if is_ready else 503)

    async def _read(self, request: Request, model: type[RequestT]) -> RequestT:
        content_type = request.headers.get("content-type", "")
        if content_type.split(";")[0].strip().lower() != "application/json":
            raise ApiError(
                415,
                "unsupported_media_type",
                f"Content-Type is {content_type[:60]!r}: send application/json",
                param="content-type",
            )
        body = await read_body(request, self._backend.limits.max_body_bytes)
        return parse_request(model, parse_json(body))

    async def _openai(
        self, kind: str, request: Request, asked: OpenAIRequest, turns: tuple[Turn, ...]
    ) -> Response:
        session_id = session_id_of(request)
        if asked.stream_options is not None and not asked.stream:
            raise ApiError(
                400,
                "conflicting_fields",
                "stream_options: only with stream: true; leave it out, or set stream",
                param="stream_options",
            )
        self._check_model(asked.model)
        sampling = self._sampling(asked)
        request_id = request_id_of(request)
        started = time.perf_counter()
        route = await self._route_for(asked.model, turns)
        route_s = time.perf_counter() - started
        clinic = self._backend.clinic.for_session(session_id)
        reply = OpenAIReply(kind, request_id, int(time.time()), route, clinic)
        call = self._call(request_id, turns, route, sampling, clinic, stream=bool(asked.stream))
        headers = {"x-request-id": request_id}
        if not asked.stream:
            text, event = await self._whole(call, route)
            return JSONResponse(reply.whole(text, event, route_s), headers=headers)
        include_usage = asked.stream_options is not None and asked.stream_options.include_usage
        events = self._backend.generate(call)
        first = await self._first(events, route)
        body = self._stream(reply, events, first, route, route_s, include_usage=include_usage)
        headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(body, media_type="text/event-stream", headers=headers)

    async def _route_for(self, model: str, turns: tuple[Turn, ...]) -> Route:
        user_turns = [turn.content for turn in turns if turn.role == "user"]
        if model == "auto":
            return (await self._backend.classify([user_turns]))[0]
        card = self._backend.clinic.adapter(model)
        return self._backend.explicit(card.specialty if card else None, user_turns[-1])

    def _call(
        self,
        request_id: str,
        turns: tuple[Turn, ...],
        route: Route,
        sampling: SamplingParams,
        clinic: Clinic,
        *,
        stream: bool,
    ) -> GenerationCall:
        card = clinic.adapter(route.adapter) if route.adapter else None
        return GenerationCall(
            request_id=request_id,
            turns=turns,
            adapter=route.adapter,
            sampling=sampling,
            stream=stream,
            answer_language=self._backend.answer_language(route),
            adapter_version=card.version if card else None,
        )

    async def _whole(self, call: GenerationCall, route: Route) -> tuple[str, TokenEvent]:
        """The whole text and the terminal event."""
        pieces = []
        async with contextlib.aclosing(self._backend.generate(call)) as events:
            async for event in events:
                pieces.append(event.text)
                if event.finish_reason is not None:
                    self._record(route, _outcome(event))
                    _raise_if_failed(event)
                    return "".join(pieces), event
        raise RuntimeError(f"request {call.request_id} ended without a terminal event")

    async def _first(self, events: AsyncGenerator[TokenEvent, None], route: Route) -> TokenEvent:
        """The first event, before the 200 is sent, so that a refusal gets its own status."""
        try:
            first = await anext(events)
        except BaseException:
            await events.aclose()
            raise
        if first.finish_reason is FinishReason.ERROR:
            self._record(route, _outcome(first))
            await events.aclose()
            _raise_if_failed(first)
        return first

    async def _stream(
        self,
        reply: OpenAIReply,
        events: AsyncGenerator[TokenEvent, None],
        first: TokenEvent,
        route: Route,
        route_s: float,
        *,
        include_usage: bool,
    ) -> AsyncGenerator[str, None]:
        async with contextlib.aclosing(events):
            event = first
            yield _sse(reply.opening())
            try:
                while event.finish_reason is None:
                    yield _sse(reply.piece(event.text, None))
                    event = await anext(events)
            except Exception as error:
                log_unexpected(error, "a stream")
                yield _sse(internal_error().body())
                return
            self._record(route, _outcome(event))
            if event.error is not None:
                yield _sse(engine_error(event.error).body())
                return
            if event.text:
                yield _sse(reply.piece(event.text, None))
            yield _sse(reply.piece("", event.finish_reason))
            if include_usage:
                yield _sse(reply.usage(event, route_s))
            yield "data: [DONE]\n\n"

    def _record(self, route: Route, outcome: str) -> None:
        self._backend.record(Outcome(route.specialty, route.adapter, outcome, route.confidence))

    def _chat_turns(self, asked: ChatRequest) -> tuple[Turn, ...]:
        """Messages -> turns; a client's system message may only come first."""
        max_chars = self._backend.limits.max_question_chars
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
            turns.append(Turn(role, message.text))
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

    def _sampling(self, asked: OpenAIRequest) -> SamplingParams:
        param, value = asked.num_tokens_asked
        stop = asked.stop_strings
        if "" in stop:
            raise ApiError(400, "invalid_value", "stop: holds an empty string", param="stop")
        return SamplingParams(
            max_tokens=self._max_tokens(param, value),
            temperature=asked.temperature or 0.0,
            top_p=asked.top_p or 1.0,
            seed=asked.seed,
            stop=stop,
        )

    def _max_tokens(self, param: str, value: int | None) -> int:
        clinic = self._backend.clinic
        if value is None:
            return clinic.default_output_tokens
        if value > clinic.max_output_tokens:
            raise ApiError(
                400,
                "invalid_value",
                f"{param}: {value} is above this server's limit of {clinic.max_output_tokens}",
                param=param,
                detail={"limit": clinic.max_output_tokens},
            )
        return value

    def _check_specialty(self, specialty: str) -> None:
        check_known("specialty", specialty, self._backend.clinic.specialties)

    def _check_model(self, model: str) -> None:
        check_known("model", model, self._backend.clinic.model_names)


def _outcome(event: TokenEvent) -> str:
    return event.error.code if event.error else str(event.finish_reason)


def _raise_if_failed(event: TokenEvent) -> None:
    if event.error is not None:
        raise engine_error(event.error)


def _sse(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
