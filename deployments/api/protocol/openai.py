"""OpenAI's requests: POST /v1/chat/completions and /v1/completions."""

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError

from deployments.api.errors import ApiError
from deployments.api.protocol import neutral
from deployments.api.protocol.ask import MaxTokens
from deployments.api.protocol.base import RequestModel
from deployments.api.protocol.neutral import Neutral

_HINT = Field(description="accepted as OpenAI's clients send it; no effect, and kept nowhere")


class StreamOptions(RequestModel):
    include_usage: StrictBool | None = None
    include_obfuscation: Annotated[StrictBool | None, _HINT] = None
    continuous_usage_stats: Neutral = None


class OpenAIRequest(RequestModel):
    """What /v1/chat/completions and /v1/completions share."""

    model: StrictStr | None = Field(
        default=None, description="auto or null (the router picks), an adapter's name, or base"
    )
    max_tokens: MaxTokens | None = None
    temperature: float | None = Field(default=None, ge=0, le=2, description="null: 0, greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] | None = None
    stop: StrictStr | Annotated[list[StrictStr], Field(max_length=4)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    top_k: StrictInt | None = Field(
        default=None, ge=0, lt=2**31, description="as in vLLM: the k most likely tokens; 0: all"
    )
    repetition_penalty: float | None = Field(
        default=None,
        gt=0,
        le=2,
        description="as in vLLM: above 1, tokens seen before are less likely",
    )
    min_tokens: StrictInt | None = Field(
        default=None, ge=0, description="as in vLLM: no end of sequence before this many tokens"
    )

    # For who caches, stores or counts: they change no answer.
    user: Annotated[StrictStr | None, _HINT] = None
    metadata: Annotated[dict[str, Any] | None, _HINT] = None
    prompt_cache_key: Annotated[StrictStr | None, _HINT] = None
    prompt_cache_retention: Annotated[StrictStr | None, _HINT] = None
    safety_identifier: Annotated[StrictStr | None, _HINT] = None
    store: Annotated[StrictBool | None, _HINT] = None

    # Accepted with a value that asks for nothing, refused by name with another.
    audio: Neutral = None
    best_of: neutral.NeutralCount = None
    echo: Neutral = None
    frequency_penalty: Neutral = None
    function_call: neutral.NeutralToolChoice = None
    functions: Neutral = None
    logit_bias: Neutral = None
    logprobs: Neutral = None
    modalities: neutral.NeutralModalities = None
    moderation: Neutral = None
    n: neutral.NeutralCount = None
    parallel_tool_calls: neutral.NeutralFlag = None
    prediction: Neutral = None
    presence_penalty: Neutral = None
    reasoning_effort: neutral.NeutralEffort = None
    response_format: neutral.NeutralFormat = None
    service_tier: neutral.NeutralTier = None
    suffix: Neutral = None
    tool_choice: neutral.NeutralToolChoice = None
    tools: Neutral = None
    top_logprobs: Neutral = None
    verbosity: neutral.NeutralVerbosity = None
    web_search_options: Neutral = None

    @property
    def model_name(self) -> str:
        return "auto" if self.model is None else self.model

    @property
    def num_tokens_asked(self) -> tuple[str, int | None]:
        """The field that bounds the answer, and its value."""
        return "max_tokens", self.max_tokens

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class TextPart(RequestModel):
    type: Literal["text"]
    text: StrictStr
    annotations: Neutral = None
    cache_control: Annotated[dict[str, Any] | None, _HINT] = None


_Content = StrictStr | Annotated[list[TextPart], Field(min_length=1)]


def _content_by_role(schema: dict[str, Any]) -> None:
    """Say in JSON Schema which turns may have no content."""
    content = schema["properties"].pop("content")
    text = [choice for choice in content["anyOf"] if choice.get("type") != "null"]
    empty: list[dict[str, Any]] = [{"type": "null"}, {"type": "array", "maxItems": 0}]
    others = ["system", "developer", "user"]
    schema["anyOf"] = [
        {
            "properties": {"role": {"enum": others}, "content": {"anyOf": text}},
            "required": ["content"],
        },
        {"properties": {"role": {"const": "assistant"}, "content": {"anyOf": [*text, *empty]}}},
    ]
    schema["properties"]["content"] = True


class ChatMessage(RequestModel, json_schema_extra=_content_by_role):
    """One turn. Our own replies can be sent back as they came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: _Content | None = Field(default=None, validate_default=True)
    name: Neutral = None
    annotations: Neutral = None
    audio: Neutral = None
    function_call: Neutral = None
    reasoning: Neutral = None
    reasoning_content: Neutral = None
    refusal: Neutral = None
    tool_call_id: Neutral = None
    tool_calls: Neutral = None

    @field_validator("content", mode="before")
    @classmethod
    def _may_be_empty(cls, content: Any, info: ValidationInfo) -> Any:
        """Accept an assistant's turn without content; another's is required."""
        is_assistant = info.data.get("role") == "assistant"
        if is_assistant and content in (None, []):
            return ""
        if content is None and "role" in info.data:
            raise PydanticKnownError("missing")
        return content

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(OpenAIRequest):
    """POST /v1/chat/completions"""

    messages: list[ChatMessage] = Field(min_length=1, max_length=256)
    max_completion_tokens: MaxTokens | None = None

    @property
    def num_tokens_asked(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is None:
            return "max_tokens", self.max_tokens
        if self.max_tokens not in (None, self.max_completion_tokens):
            raise ApiError(
                400,
                "conflicting_fields",
                f"max_tokens ({self.max_tokens}) and max_completion_tokens "
                f"({self.max_completion_tokens}) differ: send one of them",
                param="max_completion_tokens",
            )
        return "max_completion_tokens", self.max_completion_tokens


class CompletionRequest(OpenAIRequest):
    """POST /v1/completions: the prompt is asked as one question, in the serving prompt format."""

    prompt: StrictStr
