"""Bytes -> a request of schema.py, or an ApiError that names every bad field."""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from deployments.api.protocol import (
    COUNTS,
    OPENAI_FIELDS_WE_LACK,
    ApiError,
    OpenAIRequest,
    RequestModel,
)
from deployments.settings import nearest

RequestT = TypeVar("RequestT", bound=RequestModel)


def parse_json(body: bytes) -> Any:
    """JSON text -> value; NaN is kept, so that the field holding it can be named.

    Raises:
        ApiError: 400 when it is not UTF-8 JSON, is nested too deeply, or repeats a key.
    """
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_no_repeated_keys)
    except UnicodeDecodeError as error:
        raise ApiError(
            400, "invalid_json", f"the body is not UTF-8 (byte {error.start}): send JSON in UTF-8"
        ) from None
    except RecursionError:
        raise ApiError(400, "invalid_json", "the body's JSON is nested too deeply") from None
    except ValueError as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from None


def _no_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        raise ApiError(
            400, "invalid_json", f"the body repeats the key(s) {', '.join(map(_shown, repeated))}"
        )
    return result


def parse_request(model: type[RequestT], value: Any) -> RequestT:
    """JSON value -> request.

    Raises:
        ApiError: 400 naming every bad field, its value and what is allowed.
    """
    if not isinstance(value, dict):
        raise ApiError(
            400,
            "invalid_body",
            f"the body is a JSON {_json_type(value)}: send an object with the field(s) "
            f"{', '.join(sorted(model.model_fields))}",
        )
    if issubclass(model, OpenAIRequest):
        value = _without_neutral_fields(value, model)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _as_api_error(error, model) from None


def _without_neutral_fields(value: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    kept = {}
    for key, item in value.items():
        if key in model.model_fields or key not in OPENAI_FIELDS_WE_LACK:
            kept[key] = item
        elif not _is_neutral(key, item):
            raise ApiError(
                400,
                "unsupported_field",
                f"{key}: not supported by this server (got {_shown(item)}): leave it out",
                param=key,
                detail={"allowed": sorted(model.model_fields)},
            )
    return kept


def _is_neutral(key: str, value: Any) -> bool:
    """Whether the value asks for nothing. `True == 1` in Python: a bool is no number here."""
    if isinstance(value, bool):
        return value is False
    if isinstance(value, int | float):
        return value == (1 if key in COUNTS else 0)
    return value in (None, [], {}, {"type": "text"})


def _as_api_error(error: ValidationError, model: type[BaseModel]) -> ApiError:
    problems = [_problem(dict(item), model) for item in error.errors()]
    param = _path(error.errors()[0]["loc"])
    unknown = error.errors()[0]["type"] == "extra_forbidden"
    return ApiError(
        400,
        "unknown_field" if unknown else "invalid_value",
        "; ".join(dict.fromkeys(problems)),
        param=param or None,
    )


def _problem(item: dict[str, Any], model: type[BaseModel]) -> str:
    path = _path(item["loc"]) or "body"
    if item["type"] == "extra_forbidden":
        valid = model.model_fields if len(item["loc"]) == 1 else ()
        hint = f"; {nearest(str(item['loc'][0]), valid)}" if valid else ""
        return f"{_shown(path)}: unknown field{hint}"
    if item["type"] == "missing":
        return f"{path}: required, and missing"
    return f"{path}: {item['msg']} (got {_shown(item['input'])})"


def _path(loc: tuple[int | str, ...]) -> str:
    """("messages", 0, "content", "list[TextPart]") -> "messages.0.content": no type names."""
    return ".".join(
        str(p)
        for p in loc
        if isinstance(p, int) or (p.islower() and p.isidentifier() and p != "str")
    )


def _shown(value: Any) -> str:
    """A value as a client may see it again: at most 60 characters, ASCII."""
    if isinstance(value, dict | list):
        return f"a JSON {_json_type(value)}"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}... ({len(str(value))} characters)"


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
