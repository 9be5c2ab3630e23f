"""What our replies look like, for /openapi.json. The tests validate every reply against these; the
replies themselves are built as dictionaries (replies.py, openai_replies.py), which is faster."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from router.policy import Reason

Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class ReplyModel(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(ReplyModel, extra="allow"):
    """OpenAI's error shape; `limit`, `allowed` or `limited_by` stand beside it where they help."""

    message: Annotated[str, Field(description="what was wrong, what is allowed, what to do next")]
    type: Literal["invalid_request_error", "server_error"]
    param: Annotated[str | None, Field(description="the field, or null")]
    code: Annotated[str, Field(description="stable, for programs")]


class ErrorReply(ReplyModel):
    error: ErrorDetail


class Usage(ReplyModel):
    """Tokens."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count


class Timings(ReplyModel):
    """Milliseconds; null: not reached. All but `route` count from the engine's acceptance."""

    route: float
    queue: float | None
    first_token: float | None
    total: float | None


class AlternativeReply(ReplyModel):
    specialty: str
    probability: Probability


class RouteReply(ReplyModel):
    """Who speaks, how sure the router is, and why."""

    specialty: Annotated[str | None, Field(description="null: the base model answers for none")]
    confidence: Annotated[Probability | None, Field(description="null: nothing was classified")]
    adapter: Annotated[str | None, Field(description="null: the base model")]
    reason: Annotated[Reason, Field(description="why this route; a code")]
    in_scope: Annotated[bool | None, Field(description="whether it is a question for a clinic")]
    alternatives: list[AlternativeReply]
    evidence: Annotated[list[str], Field(description="phrases that decided")]
    language: Annotated[str, Field(description="of the question; und: undetermined")]
    notice: Annotated[str | None, Field(description="language_not_supported, or null")]


class RoutesReply(ReplyModel):
    routes: list[RouteReply]


class OpinionHead(ReplyModel):
    opinion: Count
    specialty: str | None
    probability: Probability | None
    adapter: str | None
    adapter_version: str | None


FinishReason = Literal["stop", "length", "timeout", "cancelled"]


class Ending(ReplyModel):
    finish_reason: Annotated[FinishReason, Field(description="the true one")]
    usage: Usage
    timings_ms: Timings


class OpinionReply(OpinionHead):
    """With `error`, there is no answer, no usage and no timings."""

    answer: str | None
    finish_reason: FinishReason | Literal["error"]
    usage: Usage | None
    timings_ms: Timings | None
    error: ErrorDetail | None


class AskReply(RouteReply, Ending):
    """At the top level stands the first opinion that did not fail."""

    id: Annotated[str, Field(description="the request's id, as in x-request-id")]
    session_id: str | None
    answer: str
    adapter_version: str | None
    opinions: Annotated[list[OpinionReply], Field(description="only with consult")] = []


class AskRouteEvent(RouteReply):
    """`event: route`, the first."""

    id: str
    session_id: str | None
    adapter_version: str | None
    opinions: list[OpinionHead]


class AskTokenEvent(ReplyModel):
    """`event: token`"""

    opinion: Count
    text: str


class AskAnswerEvent(Ending):
    """`event: answer`: this opinion is complete."""

    opinion: Count


class AskFailedEvent(ReplyModel):
    """`event: answer`: this opinion failed; the others go on."""

    opinion: Count
    error: ErrorDetail


class AskDoneEvent(ReplyModel):
    """`event: done`, the last."""

    id: str


class StreamErrorEvent(ReplyModel):
    """`event: error`, the last: nothing was answered. `error.request_id` names the request."""

    error: ErrorDetail


class PolyclinicOpening(RouteReply):
    request_id: str
    adapter_version: str | None


class PolyclinicPart(PolyclinicOpening, Ending):
    """What is ours in a completion."""


class Envelope(ReplyModel):
    id: str
    created: int
    model: Annotated[str, Field(description="the adapter that answered, or base")]


class ChatMessageReply(ReplyModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(ReplyModel):
    index: int
    logprobs: None
    finish_reason: Annotated[
        Literal["stop", "length"],
        Field(description="length: cut short, by max_tokens or by its deadline"),
    ]


class ChatChoice(Choice):
    message: ChatMessageReply


class TextChoice(Choice):
    text: str


class ChatReply(Envelope):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    polyclinic: PolyclinicPart


class CompletionReply(Envelope):
    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage
    polyclinic: PolyclinicPart


class ChatDelta(ReplyModel):
    role: Literal["assistant"] = "assistant"
    content: str


class ChunkChoice(ReplyModel):
    """`delta` in a chat, `text` in a text completion."""

    index: int
    delta: ChatDelta | None = None
    text: str | None = None
    logprobs: None
    finish_reason: Literal["stop", "length"] | None


class Chunk(Envelope):
    """`polyclinic`: the route in the first chunk, the ending in the last that has a choice."""

    object: Literal["chat.completion.chunk", "text_completion"]
    choices: list[ChunkChoice]
    usage: Usage | None = None
    polyclinic: PolyclinicOpening | Ending | None = None


class ModelReply(ReplyModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    specialty: str | None = None
    version: str | None = None
    parent: str | None = None


class ModelsReply(ReplyModel):
    object: Literal["list"]
    data: list[ModelReply]


class HealthReply(ReplyModel):
    status: Literal["ok"]


class ReadyReply(ReplyModel, extra="allow"):
    """What is loaded, and why it is not ready when it is not."""

    status: Literal["ready", "not_ready"]


class OperatorReply(ReplyModel, extra="allow"):
    """What `operator_report.assemble` describes."""

    models: list[dict[str, Any]]
    routers: list[dict[str, Any]]
