"""Grammars without a model: what a schema lets through, byte by byte."""

import datetime
import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from deployments.engine.structured.grammar import LIMITS, json_grammar, problem


class Bytes:
    """A vocabulary of all bytes."""

    eos_token_id, bos_token_id = 256, None
    tokens = [*(bytes([byte]) for byte in range(256)), b"<eos>"]
    special_token_ids = [256]

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


TOKENIZER = LLTokenizer(TokenizerWrapper(Bytes()), eos_token=[256])


def fits(grammar: str, text: str) -> bool:
    matcher = LLMatcher(TOKENIZER, grammar, log_level=0, limits=LIMITS)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()


def test_every_day_of_some_years_and_no_other() -> None:
    grammar = json_grammar({"type": "string", "format": "date"})
    for year in (1900, 2000, 2023, 2024):
        for month in range(0, 14):
            for day in (0, 1, 28, 29, 30, 31, 32):
                try:
                    datetime.date(year, month, day)
                    is_day = True
                except ValueError:
                    is_day = False
                assert fits(grammar, f'"{year}-{month:02}-{day:02}"') is is_day


@pytest.mark.parametrize(
    ("text", "is_time"),
    [
        ("2024-02-29T23:59:59Z", True),
        ("2024-02-29T23:59:59.123456+02:00", True),
        ("2023-02-29T23:59:59Z", False),
        ("2024-02-29T24:00:00Z", False),
        ("2024-02-29T23:59:59", False),
        ("2024-02-29T23:59:59.1234567Z", False),
    ],
)
def test_moments(text: str, is_time: bool) -> None:
    grammar = json_grammar({"type": "string", "format": "date-time"})
    assert fits(grammar, json.dumps(text)) is is_time


def test_a_value_that_looks_like_a_format_is_left_alone() -> None:
    value: Any = {"format": "date", "type": "string"}
    assert fits(json_grammar({"const": value}), json.dumps(value))
    named = {"type": "object", "properties": {"format": {"enum": ["date"]}}, "required": ["format"]}
    assert fits(json_grammar(named), '{"format": "date"}')


@pytest.mark.parametrize(
    "schema", [{}, True, {"type": "object"}, {"$ref": "#/$defs/a", "$defs": {"a": {}}}]
)
def test_schemas_that_anything_fits(schema: Any) -> None:
    assert problem(json_grammar(schema)) is None
    assert fits(json_grammar(schema), '{"a": [1, 2.5, null, "é"]}')


@pytest.mark.parametrize("schema", [False, {"enum": []}, {"type": "strin"}, {"not": {}}])
def test_schemas_that_nothing_fits_or_that_are_not_supported(schema: Any) -> None:
    assert problem(json_grammar(schema))


@pytest.mark.parametrize(
    "nothing",
    [
        {"uniqueItems": False},
        {"unevaluatedItems": True},
        {"unevaluatedProperties": {}},
        {"propertyNames": True},
        {"propertyNames": {}},
        {"propertyNames": {"type": "string"}},
        {"dependencies": {}},
        {"dependentRequired": {}},
        {"dependentSchemas": {}},
        {"not": False},
        {"format": "password", "writeOnly": True},
        {"format": "binary"},
        {"format": "path"},
    ],
)
def test_what_asks_for_nothing_is_left_out_at_every_level(nothing: dict[str, Any]) -> None:
    plain = {"enum": [[1, 1], {"a": 1}, "a b"]}
    for schema in (plain | nothing, {"anyOf": [plain | nothing]}, {"allOf": [nothing, plain]}):
        grammar = json_grammar(schema)
        assert problem(grammar) is None
        for value in plain["enum"]:
            assert fits(grammar, json.dumps(value))
    key = next(iter(nothing))
    named = {"type": "object", "properties": {key: {"const": 1}}, "required": [key]}
    assert fits(json_grammar(named), json.dumps({key: 1}))
    assert not fits(json_grammar(named), json.dumps({key: 2}))


@pytest.mark.parametrize(
    "asks",
    [{"uniqueItems": True}, {"uniqueItems": 0}, {"unevaluatedProperties": False},
     {"propertyNames": {"maxLength": 2}}, {"dependentRequired": {"a": ["b"]}}, {"not": True},
     {"type": "string", "format": "iban"}],
)  # fmt: skip
def test_what_asks_for_something_that_is_not_known_is_a_problem(asks: dict[str, Any]) -> None:
    assert problem(json_grammar(asks))
    assert problem(json_grammar({"type": "object", "properties": {"a": asks}, "required": ["a"]}))


@pytest.mark.parametrize("name", ["default", "const", "enum", "examples", "format", "date"])
def test_a_property_may_have_a_keywords_name(name: str) -> None:
    asked = {"properties": {name: {"type": "string", "format": "date"}}, "required": [name]}
    grammar = json_grammar({"type": "object", **asked})
    assert fits(grammar, json.dumps({name: "2024-02-29"}))
    assert not fits(grammar, json.dumps({name: "2023-02-29"}))


def test_pydantics_random_uuids() -> None:
    grammar = json_grammar({"type": "string", "format": "uuid4"})
    assert fits(grammar, '"8d8ac610-566d-4ef0-9c22-186b2a5ed793"')
    assert not fits(grammar, '"8d8ac610-566d-1ef0-9c22-186b2a5ed793"')


@pytest.mark.parametrize(
    ("format_", "good", "bad"),
    [
        ("date", "2024-02-29", "2023-02-29"),
        ("time", "23:59:59Z", "23:59:60Z"),
        ("date-time", "2024-02-29T23:59:59Z", "2023-02-29T23:59:59Z"),
        ("uuid4", "8d8ac610-566d-4ef0-9c22-186b2a5ed793", "8d8ac610-566d-1ef0-9c22-186b2a5ed793"),
    ],
)
@pytest.mark.parametrize(
    "more",
    [{"minLength": 1}, {"maxLength": 40}, {"pattern": "[0-9]"},
     {"pattern": "^[^x]", "allOf": [{"maxLength": 40}]}],
)  # fmt: skip
def test_a_format_holds_beside_lengths_and_patterns(
    format_: str, good: str, bad: str, more: dict[str, Any]
) -> None:
    grammar = json_grammar({"type": "string", "format": format_, **more})
    assert fits(grammar, json.dumps(good))
    assert not fits(grammar, json.dumps(bad))
    assert problem(json_grammar({"type": "string", "format": format_, "pattern": "x", "allOf": 5}))


def test_a_type_that_may_be_null_in_openapis_words() -> None:
    """What OpenAI's npm client sends for `z.string().nullable()`."""
    nullable: Any = {"type": "string", "maxLength": 2, "nullable": True}
    grammar = json_grammar(nullable)
    assert fits(grammar, "null")
    assert fits(grammar, '"ab"')
    assert not fits(grammar, '"abc"')
    assert fits(json_grammar({**nullable, "type": ["integer", "null"]}), "null")
    assert not fits(json_grammar({**nullable, "nullable": False}), "null")
    only = {"type": "string", "enum": ["a", None]}
    assert fits(json_grammar({**only, "nullable": True}), "null")
    assert not fits(json_grammar({**only, "enum": ["a"], "nullable": True}), "null")
    assert fits(json_grammar({"const": nullable}), json.dumps(nullable))
    named = {
        "type": "object",
        "properties": {"nullable": {"const": True}},
        "required": ["nullable"],
    }
    assert fits(json_grammar(named), '{"nullable": true}')


@pytest.mark.parametrize("name", ["Réponse", "Box[int]", "Partial<A>", 'a "b"', "a^{|}`", "日本"])
def test_a_reference_with_any_name(name: str) -> None:
    schema = {"$defs": {name: {"const": 1}}, "$ref": f"#/$defs/{name}"}
    assert fits(json_grammar(schema), "1")
    assert not fits(json_grammar(schema), "2")


def test_names_that_have_to_differ() -> None:
    """A reader of JSON takes a name that comes twice as one."""
    two: dict[str, Any] = {"type": "object", "minProperties": 2}
    closed = {"patternProperties": {"^k": True}, "additionalProperties": False}
    free = [two, {"minProperties": 2}, {**two, **closed}, {**two, "type": ["object", "null"]}]
    for schema in (*free, {**two, "minProperties": 3, "required": ["a"]}):
        with pytest.raises(ValueError, match="come twice"):
            json_grammar({"anyOf": [schema, {"type": "null"}]})
    assert fits(json_grammar({**two, "required": ["a"]}), '{"a": 1, "b": 2}')
    assert not fits(json_grammar({**two, "required": ["a"]}), '{"a": 1}')
    assert fits(json_grammar({**two, "minProperties": 1}), '{"k": 1, "k": 2}')
    both = {"properties": {"a": True, "b": True}, "required": ["a", "b"]}
    assert fits(json_grammar({**two, **both, "additionalProperties": False}), '{"a": 1, "b": 2}')
    assert fits(json_grammar({**two, "type": "string"}), '"a"')
