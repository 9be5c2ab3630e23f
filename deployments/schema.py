"""The requests that we accept: ours (`/ask`, `/route`) and OpenAI's (`/v1/...`).

Everything that a client can get wrong is an ApiError that names the field, its value, what is
allowed and what to do next. No ray, no torch, no starlette.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from deployments.settings import nearest


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

    question: StrictStr
    specialty: StrictStr | None = None
    max_tokens: MaxTokens | None = None


class RouteRequest(RequestModel):
    """POST /route: classification only."""

    questions: Annotated[list[StrictStr], Field(min_length=1)]


class StreamOptions(RequestModel):
    include_usage: StrictBool = False


class OpenAIRequest(RequestModel):
    """What /v1/chat/completions and /v1/completions share."""

    model: StrictStr = "auto"
    max_tokens: MaxTokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] | None = None
    stop: StrictStr | Annotated[list[StrictStr], Field(max_length=4)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    user: StrictStr | None = None

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

RequestT = TypeVar("RequestT", bound=RequestModel)


def parse_json(body: bytes) -> Any:
    """JSON text -> value; NaN is kept, so that the field holding it can be named.

    Raises:
        ApiError: 400 when it is not UTF-8 JSON, is nested too deeply, or repeats a key.
    """
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_no_repeated_keys)
    except UnicodeDecodeError as error:
        raise ApiError(
            400, "invalid_json", f"the body is not UTF-8 (byte {error.start}): send JSON in UTF-8"
        ) from None
    except RecursionError:
        raise ApiError(400, "invalid_json", "the body's JSON is nested too deeply") from None
    except ValueError as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from None


def _no_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        raise ApiError(
            400, "invalid_json", f"the body repeats the key(s) {', '.join(map(_shown, repeated))}"
        )
    return result


def parse_request(model: type[RequestT], value: Any) -> RequestT:
    """JSON value -> request.

    Raises:
        ApiError: 400 naming every bad field, its value and what is allowed.
    """
    if not isinstance(value, dict):
        raise ApiError(
            400,
            "invalid_body",
            f"the body is a JSON {_json_type(value)}: send an object with the field(s) "
            f"{', '.join(sorted(model.model_fields))}",
        )
    if issubclass(model, OpenAIRequest):
        value = _without_neutral_fields(value, model)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _as_api_error(error, model) from None


def _without_neutral_fields(value: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    kept = {}
    for key, item in value.items():
        if key in model.model_fields or key not in OPENAI_FIELDS_WE_LACK:
            kept[key] = item
        elif not _is_neutral(key, item):
            raise ApiError(
                400,
                "unsupported_field",
                f"{key}: not supported by this server (got {_shown(item)}): leave it out",
                param=key,
                detail={"allowed": sorted(model.model_fields)},
            )
    return kept


def _is_neutral(key: str, value: Any) -> bool:
    if value is None or value is False or value in ([], {}, {"type": "text"}):
        return True
    if isinstance(value, int | float):
        return value == (1 if key in ("n", "best_of") else 0)
    return False


def _as_api_error(error: ValidationError, model: type[BaseModel]) -> ApiError:
    problems = [_problem(dict(item), model) for item in error.errors()]
    param = _path(error.errors()[0]["loc"])
    unknown = error.errors()[0]["type"] == "extra_forbidden"
    return ApiError(
        400,
        "unknown_field" if unknown else "invalid_value",
        "; ".join(dict.fromkeys(problems)),
        param=param or None,
    )


def _problem(item: dict[str, Any], model: type[BaseModel]) -> str:
    path = _path(item["loc"]) or "body"
    if item["type"] == "extra_forbidden":
        valid = model.model_fields if len(item["loc"]) == 1 else ()
        hint = f"; {nearest(str(item['loc'][0]), valid)}" if valid else ""
        return f"{_shown(path)}: unknown field{hint}"
    if item["type"] == "missing":
        return f"{path}: required, and missing"
    return f"{path}: {item['msg']} (got {_shown(item['input'])})"


def _path(loc: tuple[int | str, ...]) -> str:
    """("messages", 0, "content", "list[TextPart]") -> "messages.0.content": no type names."""
    return ".".join(
        str(p)
        for p in loc
        if isinstance(p, int) or (p.islower() and p.isidentifier() and p != "str")
    )


def _shown(value: Any) -> str:
    """A value as a client may see it again: at most 60 characters, ASCII."""
    if isinstance(value, dict | list):
        return f"a JSON {_json_type(value)}"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}... ({len(str(value))} characters)"


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
