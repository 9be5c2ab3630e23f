"""Fields of OpenAI's API that we do not have, and the values with which they are accepted.

A client may send any of them with a value that asks for nothing (null, false, 0, an empty list),
or that changes nothing here; any other value is refused by the field's name. The rule holds for
requests, messages, parts and options alike: each declares such a field as `Neutral`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StrictBool,
    StrictInt,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

# The type of a validation error that such a field gives.
UNSUPPORTED = "unsupported_field"
_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})
# A field for whoever caches, stores or counts: it changes no answer.
HINT = Field(description="accepted as OpenAI's clients send it; no effect, and kept nowhere")


@dataclass(frozen=True, slots=True)
class AcceptOnly:
    """Accept the values of `allowed` and no other. In JSON, true is not 1 and false is not 0.

    also: further values that a test of them allows, and their JSON Schema.
    """

    allowed: tuple[Any, ...] = _NOTHING
    also: "Also | None" = None

    def check(self, value: Any) -> Any:
        if any(_is_same(value, choice) for choice in self.allowed):
            return value
        if self.also is not None and self.also.test(value):
            return value
        raise PydanticCustomError(UNSUPPORTED, "not supported by this server")

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        description = "not supported: only a value that asks for nothing is accepted"
        enum = {"enum": list(self.allowed)}
        if self.also is None:
            return {"description": description, **enum}
        return {"description": description, "anyOf": [enum, dict(self.also.schema)]}


@dataclass(frozen=True, slots=True)
class Also:
    """Describe values that are accepted beside a few named ones."""

    test: Callable[[Any], bool]
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OrNothing:
    """Take the values of `nothing` for None, in a field that we do have."""

    nothing: tuple[Any, ...] = _NOTHING

    def _read(self, value: Any) -> Any:
        return None if any(_is_same(value, choice) for choice in self.nothing) else value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"enum": list(self.nothing)}]}


def asks_for_nothing(value: Any) -> bool:
    return any(_is_same(value, choice) for choice in _NOTHING)


def _is_same(value: Any, choice: Any) -> bool:
    return value == choice and isinstance(value, bool) == isinstance(choice, bool)


Neutral = Annotated[Any, AcceptOnly()]
# {} asks for a search, with nothing said about it.
NeutralSearch = Annotated[Any, AcceptOnly((None, False, 0, "", []))]
# Biases of nothing.
NeutralBias = Annotated[
    Any,
    AcceptOnly(
        also=Also(
            lambda value: isinstance(value, dict) and all(_is_same(v, 0) for v in value.values()),
            {"type": "object", "additionalProperties": {"const": 0}},
        )
    ),
]
# Tools that are not to be called never come here (`without_uncalled`).
Tools = Annotated[
    Any,
    AcceptOnly(
        also=Also(
            lambda value: False,
            {"type": "array", "description": "with tool_choice (or function_call): none"},
        )
    ),
]


def without_uncalled(given: Any) -> Any:
    """Return a request's body without tools that it forbids to call: they ask for nothing."""
    for choice, tools in (("tool_choice", "tools"), ("function_call", "functions")):
        is_uncalled = isinstance(given, dict) and given.get(choice) == "none"
        if is_uncalled and isinstance(given.get(tools), list):
            given = {**given, tools: None}
    return given


# How many answers to make: 1 is the number that asks for nothing more.
NeutralCount = Annotated[Any, AcceptOnly((None, False, 1, "", [], {}))]
_ONE: tuple[Any, ...] = (None, False, 1, "", [], {})
MAX_CHOICES = 8
# The same number where several can be made: what asks for nothing stands for 1.
NumChoices = Annotated[
    StrictInt,
    Field(ge=1, le=MAX_CHOICES),
    BeforeValidator(lambda value: 1 if any(_is_same(value, one) for one in _ONE) else value),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MAX_CHOICES},
                {"enum": [one for one in _ONE if one != 1]},
            ],
            "description": "choices for each question; seed goes up by one from choice to choice",
        }
    ),
]
# Accepted as leaving an option out.
_OUT: tuple[Any, ...] = tuple(value for value in _NOTHING if not _is_same(value, 0))
MAX_TOP_LOGPROBS = 20
Flag = Annotated[StrictBool | None, OrNothing()]
# How many of the most likely tokens to show in each token's place; 0: the token's own score alone.
NumLogprobs = Annotated[
    Annotated[StrictInt, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None,
    OrNothing(_OUT),
    Field(description="as many of the most likely tokens in the place of each token"),
]
# Without tools, both mean that no tool is called.
NeutralToolChoice = Annotated[Any, AcceptOnly((*_NOTHING, "none", "auto"))]
NeutralFlag = Annotated[Any, AcceptOnly((*_NOTHING, True))]
NeutralModalities = Annotated[Any, AcceptOnly((*_NOTHING, ["text"]))]
NeutralEffort = Annotated[Any, AcceptOnly((*_NOTHING, "none"))]
NeutralVerbosity = Annotated[Any, AcceptOnly((*_NOTHING, "medium"))]
_TIERS = ("auto", "default", "fast", "flex", "priority", "scale")
NeutralTier = Annotated[Any, AcceptOnly((*_NOTHING, *_TIERS))]
# vLLM's: what it does anyway.
NeutralTemplate = Annotated[
    Any, AcceptOnly((*_NOTHING, {"enable_thinking": False}, {"thinking": False}))
]
NeutralOne = Annotated[Any, AcceptOnly((*_NOTHING, 1))]
