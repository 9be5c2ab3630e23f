"""Checks of a request's values: texts that the router can read, known names, limits.

The router reads French and English. A text without a single Latin letter would be classified from
nothing, so it is refused; emoji inside a sentence are fine.
"""

import re
import unicodedata
from collections.abc import Collection

from deployments.api.errors import ApiError, invalid
from deployments.api.protocol.openai import OpenAIRequest
from deployments.engine.request import SamplingParams
from deployments.messages import ServedModels
from deployments.strict_model import nearest

# Control characters (Cc) but tab and line breaks, and halves of surrogate pairs (Cs).
_NOT_ALLOWED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def check_text(param: str, text: str, *, max_chars: int) -> None:
    """Refuse an empty, overlong or unreadable text.

    Args:
        param: the field's name, for the message.
        max_chars: characters (code points) allowed.

    Raises:
        ApiError: 400 naming the field, what was found, and what is allowed.
    """
    if not text.strip():
        raise invalid(param, "empty; write a question in words", code="empty_text")
    check_length(param, len(text), max_chars=max_chars)
    check_characters(param, text)
    if has_latin_letter(text):
        return
    letters = [character for character in text if character.isalpha()]
    found = _script(letters[0]) if letters else "no letters at all"
    raise invalid(
        param,
        f"no letter of the Latin alphabet (found {found}); this clinic reads questions in English "
        "and French",
        code="unsupported_script",
        allowed=["en", "fr"],
    )


def check_length(param: str, num_chars: int, *, max_chars: int) -> None:
    """Raise ApiError (400) with both numbers when a text is too long."""
    if num_chars > max_chars:
        message = f"{num_chars} characters; at most {max_chars} are accepted: shorten it"
        raise invalid(param, message, code="text_too_long", limit=max_chars)


def check_characters(param: str, text: str) -> None:
    """Raise ApiError (400) at the first control character or lone surrogate."""
    found = _NOT_ALLOWED.search(text)
    if found:
        raise invalid(
            param,
            f"character U+{ord(found.group()):04X} at position {found.start()} is not allowed; "
            "allowed are printable characters, tab and line breaks",
            code="invalid_character",
        )


def check_count(param: str, count: int, limit: int) -> None:
    """Raise ApiError (400) with both numbers when there are too many."""
    if count > limit:
        message = f"{count} given; at most {limit} in one request"
        raise invalid(param, message, code="too_many", limit=limit)


def check_known(param: str, value: str, choices: Collection[str]) -> None:
    """Raise ApiError (404) with the nearest and all the known names."""
    if value not in choices:
        shown = ascii(value[:60])
        hint = nearest(value[:60], choices).replace("valid keys", "known")
        raise ApiError(
            404,
            f"{param}_not_found",
            f"{param}: {shown} is not known; {hint}",
            param=param,
            detail={"allowed": sorted(choices)},
        )


def has_latin_letter(text: str) -> bool:
    return any(c.isalpha() and (c.isascii() or _script(c) == "LATIN") for c in text)


def _script(character: str) -> str:
    """Return the first word of the character's Unicode name, such as LATIN, ARABIC, CJK."""
    return unicodedata.name(character, "UNKNOWN").split(" ")[0]


def sampling_of(asked: OpenAIRequest, clinic: ServedModels) -> SamplingParams:
    """Return how tokens are picked: greedily unless a temperature above 0 is given.

    Raises:
        ApiError: 400 naming the field and the limit.
    """
    param, value = asked.num_tokens_asked
    max_tokens = max_tokens_of(param, value, clinic)
    min_tokens = asked.min_tokens or 0
    if min_tokens > max_tokens:
        raise invalid(
            "min_tokens",
            f"{min_tokens} is above the longest answer of {max_tokens} tokens: lower it, or raise "
            f"{param}",
            limit=max_tokens,
        )
    stop = asked.stop_strings
    if "" in stop:
        raise invalid("stop", "holds an empty string")
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=asked.temperature or 0.0,
        top_p=asked.top_p or 1.0,
        seed=asked.seed,
        stop=stop,
        top_k=asked.top_k or 0,
        repetition_penalty=asked.repetition_penalty or 1.0,
        min_tokens=min_tokens,
    )


def max_tokens_of(param: str, value: int | None, clinic: ServedModels) -> int:
    """Return the longest answer in tokens.

    Raises:
        ApiError: 400; `value` is above the server's limit.
    """
    if value is None:
        return clinic.default_output_tokens
    if value > clinic.max_output_tokens:
        raise _above(param, value, clinic.max_output_tokens)
    return value


def timeout_of(value: float | None, max_timeout_s: float) -> float:
    """Return the seconds that an answer may take.

    Raises:
        ApiError: 400; `value` is above the server's limit.
    """
    if value is None:
        return max_timeout_s
    if value > max_timeout_s:
        raise _above("timeout_s", value, max_timeout_s)
    return value


def _above(param: str, value: float, limit: float) -> ApiError:
    return invalid(param, f"{value} is above this server's limit of {limit:g}", limit=limit)
