"""One answer as OpenAI's Responses API has it: the whole response, or the events of its stream."""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

from deployments.api.errors import ApiError
from deployments.api.generation import Completed
from deployments.api.openai.answer import OpenAIAnswer
from deployments.api.openai.logprobs import chat_tokens
from deployments.api.protocol import responses as bodies
from deployments.api.protocol.base import ReplyModel
from deployments.api.protocol.openai_replies import ChatToken, PolyclinicPart
from deployments.api.streaming import StreamItem
from deployments.engine.request import FinishReason, ScoredToken, TokenEvent

_PLACE = {"output_index": 0, "content_index": 0}


class ResponsesAnswer:
    """
    Args:
        asked: the request.
        chat: the same answer as a chat's, which knows what is ours.
        created: seconds since 1970.
    """

    def __init__(
        self,
        asked: bodies.ResponsesRequest,
        chat: OpenAIAnswer,
        created: int,
    ) -> None:
        self._chat = chat
        self.request_id = chat.request_id
        self._item_id = f"msg_{chat.request_id}"
        self._numbers = itertools.count()
        self._logprobs: list[ChatToken] = []  # of the text so far
        self._fields: dict[str, Any] = {
            "id": f"resp_{chat.request_id}",
            "object": "response",
            "created_at": created,
            "background": False,
            "error": None,
            "instructions": asked.instructions,
            "max_output_tokens": chat.sampling.max_tokens,
            "metadata": asked.metadata or {},
            "model": chat.model,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": chat.sampling.temperature,
            "text": bodies.ReplyText(format=asked.format),
            "tool_choice": "none" if asked.tool_choice == "none" else "auto",
            "tools": [],
            "top_p": chat.sampling.top_p,
            "truncation": "disabled",
            "user": asked.user,
        }

    def whole(self, answer: Completed) -> bodies.ResponsesReply:
        """Build the reply of an answer that has ended."""
        answer = self._chat.advised(0, answer)
        self._logprobs = chat_tokens(answer.event.scores)
        return self._ended(answer.text, answer.event, self._chat.part(0, answer))

    def opening(self) -> Iterator[ReplyModel]:
        """Build the events before the first text."""
        begun = self._response("in_progress", [], None, None)
        yield self._event(bodies.ResponseEvent, "response.created", response=begun)
        yield self._event(bodies.ResponseEvent, "response.in_progress", response=begun)
        item = self._message("in_progress", [])
        yield self._event(bodies.ItemEvent, "response.output_item.added", output_index=0, item=item)
        part = self._text("", [], [])
        yield self._of_part(bodies.PartEvent, "response.content_part.added", part=part)

    def text(self, text: str, scores: Sequence[ScoredToken]) -> ReplyModel:
        """Build the event of a piece of text."""
        kind = "response.output_text.delta"
        logprobs = chat_tokens(scores)
        self._logprobs += logprobs
        return self._of_part(bodies.DeltaEvent, kind, delta=text, logprobs=logprobs)

    def closing(self, item: StreamItem, said: str) -> Iterator[ReplyModel]:
        """Build the events after the last text. `said`: the whole of it."""
        assert item.event is not None
        text = said if item.verdict.text is None else item.verdict.text
        answer = Completed(text, item.event, item.verdict)
        response = self._ended(answer.text, answer.event, self._chat.part(0, answer))
        message = response.output[0]
        part = message.content[0]
        for number, annotation in enumerate(part.annotations):
            yield self._of_part(
                bodies.AnnotationEvent,
                "response.output_text.annotation.added",
                annotation_index=number,
                annotation=annotation,
            )
        kind = "response.output_text.done"
        yield self._of_part(bodies.TextDoneEvent, kind, text=part.text, logprobs=part.logprobs)
        yield self._of_part(bodies.PartEvent, "response.content_part.done", part=part)
        kind = "response.output_item.done"
        yield self._event(bodies.ItemEvent, kind, output_index=0, item=message)
        kind = f"response.{response.status}"
        yield self._event(bodies.ResponseEvent, kind, response=response)

    def failure(self, error: ApiError) -> ReplyModel:
        """Build the last event of an answer that failed."""
        detail = error.reply(request_id=self.request_id)
        return bodies.FailedEvent(
            type="error",
            sequence_number=next(self._numbers),
            code=detail.code,
            message=detail.message,
            param=detail.param,
            error=detail,
        )

    def _ended(self, text: str, event: TokenEvent, part: PolyclinicPart) -> bodies.ResponsesReply:
        is_whole = event.finish_reason is FinishReason.STOP
        status: bodies.Status = "completed" if is_whole else "incomplete"
        annotations = [
            bodies.ResponsesAnnotation(
                type="url_citation",
                start_index=found.start_index,
                end_index=found.end_index,
                title=found.title,
                url=found.url,
            )
            for found in self._chat.citations(0, text)
        ]
        message = self._message(status, [self._text(text, annotations, self._logprobs)])
        return self._response(status, [message], _usage(event), part)

    def _response(
        self,
        status: bodies.Status,
        output: list[bodies.OutputMessage],
        usage: bodies.ResponsesUsage | None,
        part: PolyclinicPart | None,
    ) -> bodies.ResponsesReply:
        details = bodies.IncompleteDetails(reason="max_output_tokens")
        more: dict[str, Any] = {} if part is None else {"polyclinic": part}
        return bodies.ResponsesReply(
            **self._fields,
            status=status,
            completed_at=int(time.time()) if status == "completed" else None,
            incomplete_details=details if status == "incomplete" else None,
            output=output,
            usage=usage,
            **more,
        )

    def _message(
        self, status: bodies.Status, content: list[bodies.OutputText]
    ) -> bodies.OutputMessage:
        return bodies.OutputMessage(
            id=self._item_id, type="message", role="assistant", status=status, content=content
        )

    @staticmethod
    def _text(
        text: str,
        annotations: list[bodies.ResponsesAnnotation],
        logprobs: list[ChatToken],
    ) -> bodies.OutputText:
        return bodies.OutputText(
            type="output_text", text=text, annotations=annotations, logprobs=logprobs
        )

    def _event(self, model: Any, kind: str, **fields: Any) -> ReplyModel:
        event: ReplyModel = model(type=kind, sequence_number=next(self._numbers), **fields)
        return event

    def _of_part(self, model: Any, kind: str, **fields: Any) -> ReplyModel:
        return self._event(model, kind, item_id=self._item_id, **_PLACE, **fields)


def _usage(event: TokenEvent) -> bodies.ResponsesUsage:
    return bodies.ResponsesUsage(
        input_tokens=event.num_prompt_tokens,
        input_tokens_details=bodies.CachedTokens(
            cached_tokens=event.num_cached_tokens, cache_write_tokens=0
        ),
        output_tokens=event.num_tokens,
        output_tokens_details=bodies.ReasoningTokens(reasoning_tokens=0),
        total_tokens=event.num_prompt_tokens + event.num_tokens,
    )
