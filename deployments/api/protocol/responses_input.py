"""The items of a request's `input` in POST /v1/responses: messages, and thoughts before them."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from deployments.api.protocol.base import RequestModel
from deployments.api.protocol.chat_messages import ChatMessage
from deployments.api.protocol.neutral import HINT, UNSUPPORTED, Neutral
from deployments.api.request_errors import shown

_HINTED = Annotated[Any, HINT]


class InputMessage(ChatMessage):
    """One turn; the items of an earlier reply's `output` can be sent back as they came."""

    type: Literal["message"] | None = "message"
    id: _HINTED = None
    status: _HINTED = None
    phase: _HINTED = None

    @model_validator(mode="before")
    @classmethod
    def _is_a_message(cls, item: Any) -> Any:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind not in (None, "message"):
            message = "only items of type 'message' and 'reasoning' are supported, not {kind}"
            raise PydanticCustomError(UNSUPPORTED, message, {"kind": shown(kind)})
        return item


class ReasoningItem(RequestModel):
    """An assistant's thoughts before an earlier answer: no part of a conversation, as in a chat's
    messages. Those that only another server can read are refused."""

    type: Literal["reasoning"]
    id: _HINTED = None
    status: _HINTED = None
    summary: _HINTED = None
    content: _HINTED = None
    encrypted_content: Neutral = None


def _kind_of_item(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return "Reasoning" if kind == "reasoning" else "Message"


def _with_a_message(items: list[Any]) -> list[Any]:
    if not any(isinstance(item, InputMessage) for item in items):
        raise PydanticCustomError("no_message", "no item of type 'message' is among them")
    return items


_Item = Annotated[
    Annotated[InputMessage, Tag("Message")] | Annotated[ReasoningItem, Tag("Reasoning")],
    Discriminator(_kind_of_item),
]
Items = Annotated[list[_Item], Field(min_length=1), AfterValidator(_with_a_message)]
