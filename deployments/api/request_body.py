"""Read a request: its body as a model, and its values checked; else an ApiError.

The router reads French and English. A text without a single Latin letter would be classified from
nothing, so it is refused; emoji inside a sentence are fine.
"""

import json
import math
import re
import sys
import unicodedata
from collections import deque
from collections.abc import Collection
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from deployments.api.compressed_body import is_compressed, too_large, unpacked
from deployments.api.errors import ApiError, invalid
from deployments.api.protocol.base import RequestModel
from deployments.api.request_errors import as_api_error, dotted, json_type, shown
from deployments.messages import ServedModels
from deployments.strict_model import nearest

RequestT = TypeVar("RequestT", bound=RequestModel)

# Control characters (Cc) but tab and line breaks, and halves of surrogate pairs (Cs).
_NOT_ALLOWED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_HALF = re.compile("[\ud800-\udfff]")


async def read_request(
    request: Request, model: type[RequestT], max_bytes: int, *, may_be_empty: bool = False
) -> RequestT:
    """Read the body as `model`.

    Args:
        may_be_empty: a request without a body stands for one without fields.

    Raises:
        ApiError: 415, 413, or 400 naming every bad field.
    """
    length = request.headers.get("content-length", "0")
    if may_be_empty and length == "0" and "transfer-encoding" not in request.headers:
        return parse_request(model, {})
    content_type = request.headers.get("content-type", "")
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise ApiError(
            415,
            "unsupported_media_type",
            f"Content-Type is {ascii(content_type[:60])}: send application/json",
            param="content-type",
        )
    is_gzip = is_compressed(request.headers)
    body = await _read(request, max_bytes)
    if is_gzip:
        body = unpacked(body, max_bytes)
    return parse_request(model, parse_json(body))


async def _read(request: Request, max_bytes: int) -> bytes:
    """Return the body; raise a 413 as soon as it is known to be too large."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large(int(declared), max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_large(len(body), max_bytes)
    return bytes(body)


def parse_json(body: bytes) -> Any:
    """Parse JSON, with or without a byte order mark.

    Raises:
        ApiError: 400 when it is not UTF-8 JSON, is nested too deeply, repeats a key, or holds half
            a surrogate pair or a number that is not finite, neither of which could be sent on.
    """
    unusual: list[float] = []

    def number(text: str) -> float:
        found = float(text)
        if not math.isfinite(found):
            unusual.append(found)
        return found

    try:
        value = json.loads(
            body.decode("utf-8-sig"),
            object_pairs_hook=_no_repeated_keys,
            parse_float=number,
            parse_constant=number,
        )
    except UnicodeDecodeError as error:
        raise ApiError(
            400, "invalid_json", f"the body is not UTF-8 (byte {error.start}): send JSON in UTF-8"
        ) from None
    except RecursionError:
        raise ApiError(400, "invalid_json", "the body's JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from None
    except ValueError:
        most = sys.get_int_max_str_digits()
        message = f"the body's JSON holds a number of more than {most} digits"
        raise ApiError(400, "invalid_json", message) from None
    if unusual or b"\\u" in body:  # in UTF-8, only an escape can be half a pair
        _check_can_be_sent(value)
    return value


def _check_can_be_sent(value: Any) -> None:
    """Raise ApiError (400) at the first text with half a surrogate pair, and the first number that
    is not finite."""
    left: deque[tuple[tuple[int | str, ...], Any]] = deque([((), value)])
    while left:
        path, item = left.popleft()
        if isinstance(item, dict):
            left.extend(((*path, key), key) for key in item)
            left.extend(((*path, key), inner) for key, inner in item.items())
        elif isinstance(item, list):
            left.extend(((*path, i), inner) for i, inner in enumerate(item))
        elif isinstance(item, str):
            check_characters(dotted(path), item, _HALF)
        elif isinstance(item, float) and not math.isfinite(item):
            raise invalid(dotted(path), f"Input should be a finite number (got {item})")


def _no_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        raise ApiError(
            400, "invalid_json", f"the body repeats the key(s) {', '.join(map(shown, repeated))}"
        )
    return result


def parse_request(model: type[RequestT], value: Any) -> RequestT:
    """Validate a JSON value as `model`.

    Raises:
        ApiError: 400 naming every bad field, its value and what is allowed.
    """
    if not isinstance(value, dict):
        raise ApiError(
            400,
            "invalid_body",
            f"the body is a JSON {json_type(value)}: send an object with the field(s) "
            f"{', '.join(model.supported())}",
        )
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise as_api_error(error.errors(include_url=False), model, value) from None


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


def check_length(param: str, num_chars: int, *, max_chars: int, what: str = "characters") -> None:
    """Raise ApiError (400) with both numbers when a text is too long."""
    if num_chars > max_chars:
        message = f"{num_chars} {what}; at most {max_chars} are accepted: shorten it"
        raise invalid(param, message, code="text_too_long", limit=max_chars)


def check_characters(param: str, text: str, refused: re.Pattern[str] = _NOT_ALLOWED) -> None:
    """Raise ApiError (400) at the first control character or lone surrogate."""
    found = refused.search(text)
    if found:
        raise invalid(
            param,
            f"character U+{ord(found.group()):04X} at position {found.start()} is not allowed; "
            "allowed are printable characters, tab and line breaks",
            code="invalid_character",
        )


def check_count(param: str, count: int, limit: int, *, code: str = "too_many") -> None:
    """Raise ApiError (400) with both numbers when there are too many."""
    if count > limit:
        message = f"{count} given; at most {limit} in one request"
        raise invalid(param, message, code=code, limit=limit)


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
    message = f"{shown(value)} is above this server's limit of {limit:g}"
    return invalid(param, message, limit=limit)
