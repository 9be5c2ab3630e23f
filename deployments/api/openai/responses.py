"""POST /v1/responses: OpenAI's newer shape around the same answers."""

import time
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response

from deployments.api.errors import ApiError, invalid
from deployments.api.openai.endpoints import OpenAIEndpoints, completed_of
from deployments.api.openai.request import chat_turns, in_openais_words
from deployments.api.openai.responses_answer import ResponsesAnswer
from deployments.api.protocol.base import ReplyModel, json_response
from deployments.api.protocol.responses import ResponsesRequest
from deployments.api.request_body import read_request
from deployments.api.streaming import AnswerStream, EventStream, sse
from deployments.messages import Backend


class ResponsesEndpoint:
    """
    Args:
        openai: answers the same questions as chats.
    """

    def __init__(self, backend: Backend, openai: OpenAIEndpoints) -> None:
        self._backend = backend
        self._openai = openai

    async def __call__(self, request: Request) -> Response:
        accepted_at, limits = time.time(), self._backend.limits
        asked = await read_request(request, ResponsesRequest, limits.max_body_bytes)
        options = asked.stream_options
        if options is not None and options.include_obfuscation is not None and not asked.stream:
            message = "only with stream: true; leave it out, or set stream"
            raise invalid("stream_options", message, code="conflicting_fields")
        try:
            chat = asked.as_chat()
            turns = {"messages": chat_turns(chat, limits.max_question_chars)}
            answers, reply = await self._openai.prepared(request, chat, turns, accepted_at)
            answer = ResponsesAnswer(asked, reply, int(accepted_at))
            if asked.stream:
                stream = AnswerStream(answers, reply.advice, all_needed=True)
                await stream.begin()
                return EventStream(request, _events(stream, answer), stream)
            [completed] = await completed_of(request, answers)
            return json_response(answer.whole(completed))
        except ApiError as error:
            raise _renamed(error, asked) from None


async def _events(stream: AnswerStream, answer: ResponsesAnswer) -> AsyncGenerator[str, None]:
    for event in answer.opening():
        yield _sse(event)
    said = []
    async for item in stream:
        if item.text or item.scores:
            said.append(item.text)
            yield _sse(answer.text(item.text, item.scores))
        if item.failure is not None:
            yield _sse(answer.failure(item.failure))
            return
        if item.event is not None:
            for event in answer.closing(item, "".join(said)):
                yield _sse(event)


def _sse(event: ReplyModel) -> str:
    return sse(event, event.type)  # type: ignore[attr-defined]


def _renamed(error: ApiError, asked: ResponsesRequest) -> ApiError:
    """Return a refusal of the chat as one of this request: with the names of its own fields."""
    error = in_openais_words(error, "messages")
    if error.param:
        param = asked.path_of(error.param)
        error.message = error.message.replace(error.param, param)
        error.param = param
    return error
