"""The requests that we accept: ours (`/ask`, `/route`) and OpenAI's (`/v1/...`).

Everything that a client can get wrong is an ApiError that names the field, its value, what is
allowed and what to do next (request_parsing.py reads them). No ray, no torch, no starlette.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr


class ApiError(Exception):
    """A refusal, in OpenAI's error shape.

    `code` is stable and meant for programs, `param` names the field, `detail` holds what a client
    may want to read without parsing the message (limit, choices).
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        detail: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.detail = dict(detail or {})
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
                **self.detail,
            }
        }


class RequestModel(BaseModel):
    """No unknown keys, no conversion between types, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


MaxTokens = Annotated[StrictInt, Field(ge=1)]


class AskRequest(RequestModel):
    """POST /ask"""

    question: Annotated[
        StrictStr, Field(description="English or French; its length is limited by the server")
    ]
    specialty: Annotated[
        StrictStr | None, Field(description="asks this specialty's specialist, without the router")
    ] = None
    max_tokens: Annotated[MaxTokens | None, Field(description="longest answer")] = None
    stream: Annotated[StrictBool, Field(description="server-sent events")] = False
    min_confidence: Annotated[
        Annotated[float, Field(ge=0, le=1)] | None,
        Field(description="the router's threshold for this request; not with specialty"),
    ] = None
    timeout_s: Annotated[
        Annotated[float, Field(gt=0)] | None,
        Field(description="seconds from acceptance until the answer ends as it is"),
    ] = None
    session_id: Annotated[
        Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")] | None,
        Field(description="the client's name for a conversation; echoed"),
    ] = None
    consult: Annotated[
        Annotated[StrictInt, Field(ge=1, le=3)] | None,
        Field(description="this many of the most probable specialists answer; not with specialty"),
    ] = None


class RouteRequest(RequestModel):
    """POST /route: classification only."""

    questions: Annotated[list[StrictStr], Field(min_length=1)]


class StreamOptions(RequestModel):
    include_usage: StrictBool = False


class OpenAIRequest(RequestModel):
    """What /v1/chat/completions and /v1/completions share."""

    model: Annotated[
        StrictStr, Field(description="auto (the router picks), an adapter's name, or base")
    ] = "auto"
    max_tokens: MaxTokens | None = None
    temperature: Annotated[
        Annotated[float, Field(ge=0, le=2)] | None, Field(description="null: 0, greedy")
    ] = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] | None = None
    stop: StrictStr | Annotated[list[StrictStr], Field(max_length=4)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[
        StrictStr | None, Field(description="accepted as OpenAI's clients send it; kept nowhere")
    ] = None
    top_k: Annotated[
        Annotated[StrictInt, Field(ge=0, lt=2**31)] | None,
        Field(description="as in vLLM: the k most likely tokens; 0: all"),
    ] = None
    repetition_penalty: Annotated[
        Annotated[float, Field(gt=0, le=2)] | None,
        Field(description="as in vLLM: above 1, tokens seen before are less likely"),
    ] = None
    min_tokens: Annotated[
        Annotated[StrictInt, Field(ge=0)] | None,
        Field(description="as in vLLM: no end of sequence before this many tokens"),
    ] = None

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


class ChatMessage(RequestModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | Annotated[list[TextPart], Field(min_length=1)]
    name: None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class ChatRequest(OpenAIRequest):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]
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


# Fields of OpenAI's API that we do not have. A neutral value, one that asks for nothing, is fine.
OPENAI_FIELDS_WE_LACK = frozenset(
    {
        "audio",
        "best_of",
        "echo",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "metadata",
        "modalities",
        "moderation",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "service_tier",
        "store",
        "suffix",
        "tool_choice",
        "tools",
        "top_logprobs",
        "verbosity",
        "web_search_options",
    }
)
# How many answers to make: of these, 1 is the neutral number.
COUNTS = frozenset({"n", "best_of"})
