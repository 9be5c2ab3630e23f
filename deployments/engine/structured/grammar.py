"""Grammars of llguidance: written from what a request asks for, and compiled for one tokenizer.

llguidance (MIT, no dependencies) compiles in milliseconds and walks the vocabulary at each token.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from deployments.engine.errors import InvalidGrammar
from deployments.engine.structured.tokenizer import make_tokenizer
from deployments.engine.structured.vocabulary import Vocabulary

# By llguidance's own figures (LLParserLimits) at most some 10 ms for a token's mask and 100 ms for
# a grammar. A grammar that needs more is refused, an answer that does ends with an error.
LIMITS = LLParserLimits(
    max_items_in_row=1_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
# Where whitespace is free, a small model stays in it for ever. Where none is, llguidance follows
# at once what has to come, without end where a schema has none.
_JSON: Any = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# llguidance's own let through February 30, and fractions of a second without end.
_DATE = (
    "[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]"
    "[0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|"
    "(?:[2468][048]|[13579][26])00)-02-29"
)
_TIME = (
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?"
    "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_UUID_4 = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"(?:{_DATE})T{_TIME}",
    "uuid4": _UUID_4,  # pydantic's
}
# These say how to show or keep a text, and nothing of its characters: OpenAPI's and pydantic's.
_FREE_FORMATS = frozenset(("password", "binary", "path"))
# Keywords that llguidance does not know, with the values that ask for nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "propertyNames": (True, {}, {"type": "string"}),  # a name is always a text: zod says so
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "not": (False,),
}
_VALUES = frozenset(("const", "enum", "default", "examples"))  # no schemas
_BY_NAME = frozenset(("properties", "patternProperties", "$defs", "definitions"))  # names, schemas
# What an address may hold as it stands (RFC 3986); of a reference, generators write the rest too.
_OF_ADDRESSES = "%/?#@!$&'()*+,;=:~"
# Grammars compiled for answers that have not begun, and first masks. What is dropped is made again.
_MOST_KEPT = 256
_KEPT_CHARS = 1 << 20


def json_grammar(schema: Any) -> str:
    """Return the grammar of JSON that fits a schema, which may be anything; `problem` tells.

    Raises:
        ValueError: it holds what no grammar can be written for.
    """
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    return LLMatcher.grammar_from_json_schema(_as_known(schema), overrides=_JSON)


def _as_known(schema: Any) -> Any:
    """Return the schema with patterns in place of the formats that have one here, and without what
    asks for nothing."""
    if isinstance(schema, list):
        return [_as_known(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _BY_NAME and isinstance(value, dict):
            made[key] = {name: _as_known(inner) for name, inner in value.items()}
        elif not any(_is_same(value, nothing) for nothing in _NEUTRAL.get(key, ())):
            made[key] = value if key in _VALUES else _as_known(value)
    _check_names_differ(schema)
    if isinstance(schema.get("$ref"), str):
        made["$ref"] = quote(schema["$ref"], safe=_OF_ADDRESSES)
    if schema.get("nullable") is True:
        made |= _with_null(schema.get("type"))
    form = schema.get("format")
    pattern = _FORMATS.get(form) if isinstance(form, str) else None
    if pattern is not None:
        del made["format"]
        if "pattern" in schema:
            also = made.setdefault("allOf", [])
            if isinstance(also, list):
                made["allOf"] = [*also, {"pattern": f"^(?:{pattern})$"}]
        else:
            made["pattern"] = f"^(?:{pattern})$"
    elif isinstance(form, str) and form in _FREE_FORMATS:
        del made["format"]
    return made


def _check_names_differ(schema: Mapping[str, Any]) -> None:
    """Raise ValueError where several names are free and have to differ: llguidance counts one that
    comes twice as two, and a reader of JSON as one."""
    least, types = schema.get("minProperties"), schema.get("type", "object")
    if not isinstance(least, int) or "object" not in (
        types if isinstance(types, list) else [types]
    ):
        return
    is_closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    required = schema.get("required")
    num_required = len({*map(str, required)}) if isinstance(required, list) else 0
    if not is_closed and least > num_required + 1:
        raise ValueError(
            f"minProperties is {least}, and 'required' names {num_required}: of names that are "
            "free, one could come twice: require at most one"
        )


def _with_null(types: Any) -> dict[str, Any]:
    """Return the type of a schema with OpenAPI's `nullable: true`, which is about the type alone:
    OpenAI's npm client sends it for zod's nullable()."""
    if isinstance(types, str):
        types = [types]
    if not isinstance(types, list) or "null" in types:
        return {}
    return {"type": [*types, "null"]}


def _is_same(value: Any, choice: Any) -> bool:
    return type(value) is type(choice) and bool(value == choice)


def problem(grammar: str) -> str | None:
    """Return why no answer can keep to a grammar, as far as that shows without a tokenizer."""
    found = LLMatcher.validate_grammar(grammar, None, limits=LIMITS)
    return None if not found or found.startswith("WARNING") else found


class FreshMatcher(NamedTuple):
    """A matcher that has seen no token, and the bits of those that may come first."""

    matcher: LLMatcher
    first_bits: bytes


class GrammarCompiler:
    """Compile grammars for one model. Any thread may call it.

    Each answer has a matcher of its own. llguidance's copies of one share the automaton of its
    texts, with a lock around it and the bound on its size: an answer that grew too complex would
    end all others of its grammar, now and later.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: LLTokenizer | None = None
        self._ready: deque[tuple[str, FreshMatcher]] = deque()  # the newest last
        self._first: OrderedDict[str, bytes] = OrderedDict()  # of grammars, the first bits
        self._lock = threading.Lock()
        self._making = threading.Lock()

    @property
    def eos_ids(self) -> list[int]:
        return self._vocabulary.eos_ids

    def prepare(self, grammar: str) -> None:
        """Compile a grammar for an answer that is to begin.

        Raises:
            InvalidGrammar: no answer can keep to it, or it is too complex.
        """
        fresh = self._compile(grammar)
        with self._lock:
            self._ready.append((grammar, fresh))
            while len(self._ready) > 1 and not _are_few(self._ready):
                self._ready.popleft()

    def fresh_matcher(self, grammar: str) -> FreshMatcher:
        """Return a matcher for an answer that begins: one that `prepare` made, or else a new one.

        Raises:
            InvalidGrammar: as `prepare`.
        """
        with self._lock:
            for ready in self._ready:
                if ready[0] == grammar:
                    self._ready.remove(ready)
                    return ready[1]
        return self._compile(grammar)

    def _compile(self, grammar: str) -> FreshMatcher:
        matcher = LLMatcher(self.tokenizer(), grammar, log_level=0, limits=LIMITS)
        with self._lock:
            bits = self._first.pop(grammar, None)
        if bits is None and not matcher.is_error():
            bits = matcher.compute_bitmask()
        if bits is None or matcher.is_error():
            raise InvalidGrammar(matcher.get_error())
        with self._lock:
            self._first[grammar] = bits
            while len(self._first) > 1 and not _are_few(self._first.items()):
                self._first.popitem(last=False)
        return FreshMatcher(matcher, bits)

    def tokenizer(self) -> LLTokenizer:
        """Return the model's tokenizer as llguidance has it, made at the first call."""
        with self._making:
            if self._tokenizer is None:
                self._tokenizer = make_tokenizer(self._vocabulary)
            return self._tokenizer


def _are_few(kept: Collection[tuple[str, object]]) -> bool:
    """Return whether what is kept for grammars is within bounds."""
    num_chars = sum(len(grammar) for grammar, _ in kept)
    return len(kept) <= _MOST_KEPT and num_chars <= _KEPT_CHARS
