"""What an answer is to keep to: OpenAI's response_format and text.format, vLLM's options."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StrictBool, StrictStr, Tag

from deployments.api.protocol.base import RequestModel
from deployments.api.protocol.neutral import HINT, UNSUPPORTED, Flag, Neutral, OrNothing

Kind = Literal["json", "choice", "regex"]


@dataclass(frozen=True, slots=True)
class Structure:
    """One thing that an answer keeps to, and where in the body it stands."""

    path: str
    kind: Kind
    value: Any


_Name = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_Schema = Annotated[
    dict[str, Any] | StrictBool | None,
    Field(alias="schema", description="JSON Schema; see docs/usage.md; null: any value"),
]


class TextFormat(RequestModel):
    type: Literal["text"]


class JsonObjectFormat(RequestModel):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(RequestModel):
    """`strict`: the answer keeps to the schema with any value."""

    name: _Name
    json_schema: _Schema = None
    description: Annotated[StrictStr | None, HINT] = None
    strict: Annotated[StrictBool | None, HINT] = None


class JsonSchemaFormat(RequestModel):
    type: Literal["json_schema"]
    json_schema: NamedSchema


class FlatSchemaFormat(NamedSchema):
    """The same in /v1/responses."""

    type: Literal["json_schema"]


_TAGS = {"text": "Text", "json_object": "Object", "json_schema": "Schema"}


def _tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return _TAGS.get(kind) if isinstance(kind, str) else None


_BY_TYPE = Discriminator(
    _tag,
    custom_error_type=UNSUPPORTED,
    custom_error_message="its type is none of text, json_object, json_schema",
)
_Plain = Annotated[TextFormat, Tag("Text")] | Annotated[JsonObjectFormat, Tag("Object")]
ResponseFormat = Annotated[
    Annotated[_Plain | Annotated[JsonSchemaFormat, Tag("Schema")], _BY_TYPE] | None, OrNothing()
]
ResponsesFormat = Annotated[
    Annotated[_Plain | Annotated[FlatSchemaFormat, Tag("Schema")], _BY_TYPE] | None, OrNothing()
]
_Json = Annotated[dict[str, Any] | StrictStr | None, OrNothing()]
_Choices = Annotated[list[Annotated[StrictStr, Field(min_length=1)]] | None, OrNothing()]
_Regex = Annotated[StrictStr | None, OrNothing()]


class StructuredOutputs(RequestModel):
    """vLLM's `structured_outputs`: one of json, choice, regex, json_object."""

    json_: Annotated[_Json, Field(alias="json", description="JSON Schema")] = None
    choice: Annotated[_Choices, Field(description="the answer is one of these texts")] = None
    regex: Annotated[_Regex, Field(description="the whole answer matches")] = None
    json_object: Flag = None
    grammar: Neutral = None
    structural_tag: Neutral = None
    whitespace_pattern: Neutral = None
    disable_any_whitespace: Annotated[StrictBool | None, HINT] = None
    disable_additional_properties: Neutral = None
    disable_fallback: Annotated[StrictBool | None, HINT] = None


class StructuredRequest(RequestModel):
    """The fields of a request that say what the answer is to keep to: at most one of them."""

    response_format: Annotated[
        ResponseFormat, Field(description="text, a JSON object, or JSON that fits a schema")
    ] = None
    structured_outputs: Annotated[StructuredOutputs | None, OrNothing()] = None
    guided_json: Annotated[_Json, Field(description="as structured_outputs.json")] = None
    guided_choice: Annotated[_Choices, Field(description="as structured_outputs.choice")] = None
    guided_regex: Annotated[_Regex, Field(description="as structured_outputs.regex")] = None
    guided_grammar: Neutral = None
    guided_whitespace_pattern: Neutral = None
    guided_decoding_backend: Annotated[Any, HINT] = None

    @property
    def structures(self) -> list[Structure]:
        """All that the answer is to keep to."""
        found = [
            Structure("guided_json", "json", self.guided_json),
            Structure("guided_choice", "choice", self.guided_choice),
            Structure("guided_regex", "regex", self.guided_regex),
        ]
        if isinstance(self.response_format, JsonObjectFormat):
            found.append(Structure("response_format", "json", {"type": "object"}))
        if isinstance(self.response_format, JsonSchemaFormat):
            path = "response_format.json_schema.schema"
            schema = self.response_format.json_schema.json_schema
            found.append(Structure(path, "json", {} if schema is None else schema))
        if (inner := self.structured_outputs) is not None:
            found += [
                Structure("structured_outputs.json", "json", inner.json_),
                Structure("structured_outputs.choice", "choice", inner.choice),
                Structure("structured_outputs.regex", "regex", inner.regex),
            ]
            if inner.json_object:
                path = "structured_outputs.json_object"
                found.append(Structure(path, "json", {"type": "object"}))
        return [structure for structure in found if structure.value is not None]
