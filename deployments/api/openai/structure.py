"""The grammar that an answer is to keep to, checked before anything is asked of a model."""

import asyncio
import functools
import json
from collections.abc import Iterator
from typing import Any

from llguidance import LLMatcher

from deployments.api.errors import ApiError, invalid
from deployments.api.protocol.structure import Kind, Structure, StructuredRequest
from deployments.api.request_body import parse_json
from deployments.engine.structured.grammar import json_grammar, problem

MAX_CHARS = 64 * 1024
MAX_DEPTH = 64
MAX_CHOICES = 1000
MAX_REGEX_CHARS = 4096
_CODE = "invalid_schema"
_MOST_BLAMED = 64  # compilations to find the part of a schema that is to blame
# Where JSON Schema has schemas: by name, in a list, or one.
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_ONE = ("items", "additionalProperties", "additionalItems")


async def structure_of(asked: StructuredRequest) -> tuple[Structure, str] | None:
    """Return what the answer is to keep to, with its grammar; None if it is free.

    Raises:
        ApiError: 400; two things are asked for, it is too large, or nothing can keep to it, with
            the path of the part that is to blame.
    """
    found = asked.structures
    if not found:
        return None
    if len(found) > 1:
        names = " and ".join(structure.path for structure in found)
        message = f"{names} are sent: an answer keeps to one of them"
        raise invalid(found[1].path, message, code="conflicting_fields")
    [structure] = found
    text = _text_of(structure)
    grammar = await asyncio.to_thread(_grammar, structure.kind, text)
    if isinstance(grammar, _Problem):
        path = ".".join((structure.path, *(part[:60] for part in grammar.path)))
        message = f"no answer can be held to this: {grammar.why}: change or leave out this part"
        raise invalid(path, message, code=_CODE)
    return structure, grammar


def _text_of(structure: Structure) -> str:
    """Return the structure as one text, within the limits."""
    path, value = structure.path, structure.value
    if structure.kind == "regex":
        _check_size(path, len(value), MAX_REGEX_CHARS, "characters")
        return str(value)
    if structure.kind == "choice":
        _check_size(path, len(value), MAX_CHOICES, "choices")
    elif isinstance(value, str):
        _check_size(path, len(value), MAX_CHARS, "characters")
        value = _parsed(path, value)
    _check_size(path, _depth(value), MAX_DEPTH, "levels of nesting")
    text = json.dumps(value, ensure_ascii=False)
    _check_size(path, len(text), MAX_CHARS, "characters as JSON")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise invalid(path, "half a surrogate pair is no character", code=_CODE)
    return text


def _parsed(path: str, text: str) -> Any:
    try:
        found = parse_json(text.encode())
    except ApiError as error:
        why = error.message.replace("the body", "it")
        message = f"a text that is not JSON as a body may hold it ({why}): send the schema"
        raise invalid(path, message, code=_CODE) from None
    if not isinstance(found, dict | bool):
        raise invalid(path, "not a JSON Schema, which is an object, true or false", code=_CODE)
    return found


def _check_size(path: str, size: int, most: int, what: str) -> None:
    if size > most:
        message = f"{size} {what}; at most {most} are accepted: simplify it"
        raise invalid(path, message, code=_CODE, limit=most)


def _depth(value: Any) -> int:
    """Return how deeply JSON is nested, at most MAX_DEPTH + 1: the rest is not looked at."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            item
            for each in level
            if isinstance(each, dict | list)
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


class _Problem:
    """Why nothing can keep to a structure, and the path of the part that is to blame."""

    def __init__(self, path: tuple[str, ...], why: str) -> None:
        self.path = path
        self.why = why


@functools.lru_cache(128)
def _grammar(kind: Kind, text: str) -> "str | _Problem":
    if kind == "regex":
        grammar = LLMatcher.grammar_from_regex(text)
    elif kind == "choice":
        choices = " | ".join(json.dumps(choice) for choice in json.loads(text))
        grammar = LLMatcher.grammar_from_lark(f"start: {choices}")
    else:
        schema = json.loads(text)
        why = _why(schema, schema)
        if why is not None:
            return _Problem(_blamed(schema, schema, why, [_MOST_BLAMED]), why)
        grammar = json_grammar(schema)
    why = problem(grammar)
    return grammar if why is None else _Problem((), _first_line(why))


def _why(schema: Any, root: Any) -> str | None:
    """Return why no JSON can be held to a schema, whose references are those of `root`."""
    if isinstance(root, dict) and isinstance(schema, dict):
        shared = {name: root[name] for name in ("$defs", "definitions") if name in root}
        schema = shared | schema
    try:
        found = problem(json_grammar(schema))
    except ValueError as error:
        found = str(error)
    return None if found is None else _first_line(found)


def _first_line(text: str) -> str:
    """Return an error in one line of bounded length: a regular expression's has a drawing."""
    lines = [line.strip() for line in text.strip().splitlines()]
    told = [line for line in lines if line.startswith("error: ")] or lines
    return told[0].removeprefix("error: ")[:200]


def _blamed(schema: Any, root: Any, why: str, left: list[int]) -> tuple[str, ...]:
    """Return the path of the smallest part that cannot be compiled for the same reason, as far as
    it is found in `left` compilations (one number, which this counts down)."""
    for path, part in _parts(schema):
        if not left[0]:
            return ()
        left[0] -= 1
        if _why(part, root) == why:
            return (*path, *_blamed(part, root, why, left))
    return ()


def _parts(schema: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the schemas directly in a schema, with their paths."""
    if not isinstance(schema, dict):
        return
    for name, value in schema.items():
        if name in _BY_NAME and isinstance(value, dict):
            yield from (((name, key), part) for key, part in value.items())
        elif name in _LISTS and isinstance(value, list):
            yield from (((name, str(number)), part) for number, part in enumerate(value))
        elif name in _ONE and isinstance(value, dict):
            yield (name,), value


def engine_words(error: ApiError, structure: Structure | None) -> ApiError:
    """Return an engine's error with the request's own name for the structure."""
    if error.param == "structure" and structure is not None:
        error.message = error.message.replace("structure:", f"{structure.path}:", 1)
        error.param = structure.path
    return error
