"""The messages of /v1/chat/completions: who said what, as text or as parts of text."""

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    StrictStr,
    Tag,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from deployments.api.protocol.base import RequestModel
from deployments.api.protocol.neutral import HINT, UNSUPPORTED, Neutral, asks_for_nothing

_Role = Literal["system", "developer", "user", "assistant"]
_TextType = Literal["text", "input_text", "output_text"]


def _known(kind: Any) -> Any:
    """Refuse pictures, sound and files by their type, whatever else they hold."""
    if isinstance(kind, str) and kind not in get_args(_TextType):
        only = "such a part is not supported: only text, input_text, output_text and refusal are"
        raise PydanticCustomError(UNSUPPORTED, only)
    return kind


class TextPart(RequestModel):
    type: Annotated[_TextType, BeforeValidator(_known)]
    text: StrictStr
    annotations: Annotated[Any, HINT] = None  # of an earlier answer of ours
    logprobs: Annotated[Any, HINT] = None
    cache_control: Annotated[Any, HINT] = None
    prompt_cache_breakpoint: Annotated[Any, HINT] = None


class RefusalPart(RequestModel):
    """What an assistant said instead of an answer: its text like any other."""

    type: Literal["refusal"]
    refusal: StrictStr

    @property
    def text(self) -> str:
        return self.refusal


def _kind_of_part(part: Any) -> str:
    return "Refusal" if isinstance(part, dict) and part.get("type") == "refusal" else "Text"


_Part = Annotated[
    Annotated[TextPart, Tag("Text")] | Annotated[RefusalPart, Tag("Refusal")],
    Discriminator(_kind_of_part),
]
_Parts = Annotated[list[_Part], Field(min_length=1)]


def _kind_of_content(content: Any) -> str:
    return "Parts" if isinstance(content, list) else "Text"


_Content = Annotated[
    Annotated[StrictStr, Tag("Text")] | Annotated[_Parts, Tag("Parts")],
    Discriminator(_kind_of_content),
]


def _content_by_role(schema: dict[str, Any]) -> None:
    """Say in JSON Schema which turns may have no content, and that unknown fields may be null."""
    schema["additionalProperties"] = {"type": "null"}
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
    """One turn. Our own replies can be sent back as they came, and other models' too, unless they
    hold what we cannot say to the model: calls of tools, and sound."""

    role: _Role
    content: _Content | None = Field(default=None, validate_default=True)
    name: Annotated[StrictStr | None, HINT] = None
    cache_control: Annotated[Any, HINT] = None
    # An assistant's thoughts before an earlier answer are no part of a conversation.
    reasoning: Annotated[Any, HINT] = None
    reasoning_content: Annotated[Any, HINT] = None
    reasoning_details: Annotated[Any, HINT] = None
    thinking_blocks: Annotated[Any, HINT] = None
    provider_specific_fields: Annotated[Any, HINT] = None
    refusal: Any = Field(default=None, description="of an assistant: its text, without a content")
    annotations: Annotated[Any, HINT] = None
    audio: Neutral = None
    function_call: Neutral = None
    images: Neutral = None
    parsed: Neutral = None
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

    @field_validator("refusal")
    @classmethod
    def _is_the_assistants(cls, refusal: Any, info: ValidationInfo) -> Any:
        is_said = isinstance(refusal, str) and info.data.get("role", "assistant") == "assistant"
        if not (is_said or asks_for_nothing(refusal)):
            raise PydanticCustomError(UNSUPPORTED, "not supported by this server")
        return refusal

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or self.refusal or ""
