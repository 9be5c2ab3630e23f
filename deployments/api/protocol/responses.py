"""POST /v1/responses: OpenAI's request, reply and events, without what needs a server's memory.

Nothing is stored: the whole conversation comes with each request, as `input`.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    StrictBool,
    StrictStr,
    Tag,
    model_validator,
)

from deployments.api.protocol import neutral
from deployments.api.protocol.ask import MaxTokens
from deployments.api.protocol.base import Count, ErrorDetail, ReplyModel, RequestModel
from deployments.api.protocol.chat_messages import ChatMessage
from deployments.api.protocol.neutral import HINT, AcceptOnly, Neutral, OrNothing
from deployments.api.protocol.openai import ChatRequest
from deployments.api.protocol.openai_replies import ChatToken, PolyclinicPart
from deployments.api.protocol.references import Grounding
from deployments.api.protocol.responses_input import InputMessage, Items
from deployments.api.protocol.structure import (
    FlatSchemaFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedSchema,
    ResponseFormat,
    ResponsesFormat,
)

_Hint = Annotated[Any, HINT]


def _kind_of_input(given: Any) -> str:
    return "Items" if isinstance(given, list) else "Text"


LOGPROBS = "message.output_text.logprobs"
# There is no reasoning here, so nothing of it is left out.
_Include = Annotated[
    list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None,
    OrNothing(),
]


class TextConfig(RequestModel):
    format: ResponsesFormat = None
    verbosity: neutral.NeutralVerbosity = None


class Reasoning(RequestModel):
    effort: neutral.NeutralEffort = None
    summary: Neutral = None
    generate_summary: Neutral = None


class ResponsesStreamOptions(RequestModel):
    include_obfuscation: Annotated[StrictBool | None, HINT] = None


class ResponsesRequest(RequestModel):
    """POST /v1/responses"""

    _tools = model_validator(mode="before")(neutral.without_uncalled)

    model: StrictStr | None = Field(
        default=None, description="auto or null (the router picks), an adapter's name, or base"
    )
    input: Annotated[
        Annotated[StrictStr, Tag("Text")] | Annotated[Items, Tag("Items")],
        Discriminator(_kind_of_input),
    ] = Field(description="the question, or the conversation so far")
    instructions: StrictStr | None = Field(default=None, description="for the model, before all")
    max_output_tokens: MaxTokens | None = None
    temperature: float | None = Field(default=None, ge=0, le=2, description="null: 0, greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: StrictBool | None = None
    stream_options: ResponsesStreamOptions | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: _Include = None
    top_logprobs: neutral.NumLogprobs = None

    grounding: Grounding = None  # ours

    user: Annotated[StrictStr | None, HINT] = None
    metadata: dict[str, StrictStr] | None = Field(default=None, description="said back")
    prompt_cache_key: Annotated[StrictStr | None, HINT] = None
    prompt_cache_options: _Hint = None
    prompt_cache_retention: Annotated[StrictStr | None, HINT] = None
    safety_identifier: Annotated[StrictStr | None, HINT] = None
    store: Annotated[StrictBool | None, HINT] = None

    access_programs: Neutral = None
    background: Neutral = None
    background_options: Neutral = None
    context_management: Neutral = None
    conversation: Neutral = None
    image: Neutral = None
    max_tool_calls: Neutral = None
    moderation: Neutral = None
    parallel_tool_calls: neutral.NeutralFlag = None
    previous_response_id: Neutral = None
    prompt: Neutral = None
    service_tier: neutral.NeutralTier = None
    tool_choice: neutral.NeutralToolChoice = None
    tools: neutral.Tools = None
    truncation: Annotated[Any, AcceptOnly((None, False, 0, "", [], {}, "disabled"))] = None

    def as_chat(self) -> ChatRequest:
        """Return the same question as a chat's: `instructions` are its first system turn."""
        turns: list[ChatMessage] = []
        if isinstance(self.input, str):
            turns.append(ChatMessage(role="user", content=self.input))
        else:
            turns.extend(item for _, item in self._messages)
        first = [ChatMessage(role="system", content=self.instructions)] if self.instructions else []
        given = None if self.text is None else self.text.format
        wanted: ResponseFormat = given if isinstance(given, JsonObjectFormat) else None
        if isinstance(given, FlatSchemaFormat):
            named = NamedSchema.model_validate({"name": given.name, "schema": given.json_schema})
            wanted = JsonSchemaFormat(type="json_schema", json_schema=named)
        return ChatRequest(
            model=self.model,
            messages=[*first, *turns],
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stream=self.stream,
            grounding=self.grounding,
            logprobs=LOGPROBS in (self.include or ()) or bool(self.top_logprobs),
            top_logprobs=self.top_logprobs,
            response_format=wanted,
        )

    @property
    def _messages(self) -> list[tuple[int, InputMessage]]:
        """The messages among the items, each with its place."""
        items = enumerate(self.input if isinstance(self.input, list) else ())
        return [(place, item) for place, item in items if isinstance(item, InputMessage)]

    @property
    def format(self) -> dict[str, Any]:
        """The format of the answer, as it was asked for; a schema that is no object, as one."""
        if self.text is None or self.text.format is None:
            return {"type": "text"}
        said = self.text.format.model_dump(by_alias=True, exclude_unset=True)
        if isinstance(self.text.format, FlatSchemaFormat) and said.get("schema") in (None, True):
            said["schema"] = {}  # the same, as OpenAI's client reads it
        return said

    def path_of(self, chat_path: str) -> str:
        """Return where in this request is what `as_chat` puts at `chat_path`."""
        if chat_path in ("max_tokens", "max_completion_tokens"):
            return "max_output_tokens"
        if chat_path.startswith("response_format"):
            rest = chat_path.removeprefix("response_format").removeprefix(".json_schema")
            return f"text.format{rest}"
        if chat_path == "logprobs":
            return "top_logprobs" if self.top_logprobs else "include"
        first, _, rest = chat_path.partition(".")
        if first != "messages":
            return chat_path
        number, _, inside = rest.partition(".")
        position = int(number or 1) - bool(self.instructions)
        if position < 0:
            return "instructions"
        if not number or isinstance(self.input, str):
            return "input"
        place, _ = self._messages[position]
        return ".".join(part for part in ("input", str(place), inside) if part)


Status = Literal["in_progress", "completed", "incomplete"]


class ResponsesAnnotation(ReplyModel):
    """A marker's characters in the text, and its passage's title and address."""

    type: Literal["url_citation"] = "url_citation"
    start_index: int
    end_index: int
    title: str
    url: str


class OutputText(ReplyModel):
    type: Literal["output_text"]
    text: str
    annotations: list[ResponsesAnnotation] = Field(
        description="markers of passages that have an address"
    )
    logprobs: list[ChatToken] = Field(description="empty unless asked for")


class OutputMessage(ReplyModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Status
    content: list[OutputText]


class CachedTokens(ReplyModel):
    """Input that was read before and not again; none is written for later at a price."""

    cached_tokens: Count
    cache_write_tokens: Count


class ReasoningTokens(ReplyModel):
    reasoning_tokens: Count


class ResponsesUsage(ReplyModel):
    """Tokens."""

    input_tokens: Count
    input_tokens_details: CachedTokens
    output_tokens: Count
    output_tokens_details: ReasoningTokens
    total_tokens: Count


class IncompleteDetails(ReplyModel):
    reason: Literal["max_output_tokens"] = Field(
        description="cut short, by max_output_tokens, its deadline, or a loop"
    )


class ReplyText(ReplyModel):
    format: dict[str, Any] = Field(description="the request's")


class ResponsesReply(ReplyModel):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    background: Literal[False]
    error: None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int
    metadata: dict[str, str]
    model: str = Field(description="the adapter that answered, or base")
    output: list[OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: None
    store: Literal[False]
    temperature: float
    text: ReplyText
    tool_choice: Literal["auto", "none"]
    tools: list[Any]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponsesUsage | None
    user: str | None
    polyclinic: PolyclinicPart | None = Field(
        default=None, description="ours: the route, how the answer ended; once it has ended"
    )


class _Event(ReplyModel):
    sequence_number: Count


class ResponseEvent(_Event):
    """The whole response as it is by now."""

    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete"
    ]
    response: ResponsesReply


class ItemEvent(_Event):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputMessage


class _OfPart(_Event):
    item_id: str
    output_index: int
    content_index: int


class PartEvent(_OfPart):
    type: Literal["response.content_part.added", "response.content_part.done"]
    part: OutputText


class DeltaEvent(_OfPart):
    type: Literal["response.output_text.delta"]
    delta: str
    logprobs: list[ChatToken]


class AnnotationEvent(_OfPart):
    type: Literal["response.output_text.annotation.added"]
    annotation_index: int
    annotation: ResponsesAnnotation


class TextDoneEvent(_OfPart):
    type: Literal["response.output_text.done"]
    text: str
    logprobs: list[ChatToken]


class FailedEvent(_Event):
    """The answer failed; nothing follows. `error` is that of a refusal's body."""

    type: Literal["error"]
    code: str
    message: str
    param: str | None
    error: ErrorDetail
