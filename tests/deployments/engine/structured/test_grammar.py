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
