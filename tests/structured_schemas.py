"""Small schemas of the kinds that people send, each with bounds that a random model reaches."""

from typing import Any

_TEXT = {"type": "string", "maxLength": 8}
_CODE = {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"}


def closed(properties: dict[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """An object with these properties and no others."""
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


SCHEMAS: dict[str, Any] = {
    "flat": closed({"name": _TEXT, "age": {"type": "integer", "minimum": 0, "maximum": 130}}),
    "nested": closed(
        {
            "patient": closed({"id": _CODE, "at": closed({"ward": _TEXT})}),
            "is_new": {"type": "boolean"},
        }
    ),
    "enum": closed({"severity": {"enum": ["mild", "moderate", "severe", None, 4]}}),
    "const": closed({"kind": {"const": "note"}, "version": {"const": 2}}),
    "array": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    "array_of_objects": closed(
        {
            "items": {
                "type": "array",
                "maxItems": 2,
                "items": closed({"n": {"type": "integer", "minimum": 1, "maximum": 9}}),
            }
        }
    ),
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"enum": ["x", "y"]}],
        "items": False,
        "minItems": 2,
    },
    "reference": {
        "$defs": {"place": closed({"code": _CODE})},
        **closed({"from": {"$ref": "#/$defs/place"}, "to": {"$ref": "#/$defs/place"}}),
    },
    "recursion": {
        "$defs": {
            "node": closed(
                {
                    "v": {"type": "integer", "minimum": 0, "maximum": 9},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
                }
            )
        },
        "$ref": "#/$defs/node",
    },
    "any_of": {"anyOf": [{"type": "boolean"}, _CODE, closed({"a": {"type": "null"}})]},
    "one_of": {"oneOf": [{"type": "boolean"}, {"type": "null"}]},
    "all_of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]},
            {
                "properties": {"a": True, "b": {"type": "boolean"}},
                "additionalProperties": False,
                "required": ["b"],
            },
        ],
    },
    "pattern": closed({"code": _CODE, "phone": {"type": "string", "pattern": "^\\+33[0-9]{9}$"}}),
    "formats": closed(
        {
            "day": {"type": "string", "format": "date"},
            "at": {"type": "string", "format": "time"},
            "when": {"type": "string", "format": "date-time"},
            "id": {"type": "string", "format": "uuid"},
            "ip": {"type": "string", "format": "ipv4"},
        }
    ),
    "numbers": closed(
        {
            "dose": {"type": "number", "minimum": 0.5, "maximum": 9.75, "multipleOf": 0.25},
            "delta": {"type": "integer", "exclusiveMinimum": -5, "exclusiveMaximum": 5},
        }
    ),
    "optional": closed(
        {"a": {"type": "boolean"}, "b": {"type": "null"}, "c": {"enum": [1]}}, optional=("a", "c")
    ),
    "map": {
        "type": "object",
        "patternProperties": {"^k[0-9]$": {"type": "boolean"}},
        "additionalProperties": False,
        "maxProperties": 2,
    },
    "unions": closed(
        {"value": {"type": ["boolean", "null"]}, "nullable": {"anyOf": [_CODE, {"type": "null"}]}}
    ),
    "draft_07": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"yes_no": {"enum": ["yes", "no"]}},
        "title": "Answer",
        "description": "as pydantic 1 writes them",
        **closed({"answer": {"$ref": "#/definitions/yes_no"}}),
    },
    "accents": closed(
        {"réponse": {"enum": ["été", "naïve", "œdème", "日本", "🙂", 'a "b" \\ c\n']}}
    ),
}
