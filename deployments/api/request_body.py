"""The body of a request -> its model, or an ApiError that names every bad field."""

import json
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from deployments.api.errors import ApiError
from deployments.api.protocol.base import RequestModel
from deployments.api.protocol.neutral import UNSUPPORTED
from deployments.strict_model import nearest

RequestT = TypeVar("RequestT", bound=RequestModel)


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
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise ApiError(
            415,
            "unsupported_encoding",
            f"Content-Encoding is {ascii(encoding[:60])}: send the JSON uncompressed",
            param="content-encoding",
        )
    return parse_request(model, parse_json(await _read(request, max_bytes)))


async def _read(request: Request, max_bytes: int) -> bytes:
    """Return the body; raise a 413 as soon as it is known to be too large."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(int(declared), max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(len(body), max_bytes)
    return bytes(body)


def _too_large(num_bytes: int, limit: int) -> ApiError:
    return ApiError(
        413,
        "body_too_large",
        f"the body is {num_bytes} bytes or more; at most {limit} are accepted",
        detail={"limit": limit},
    )


def parse_json(body: bytes) -> Any:
    """Parse JSON, with or without a byte order mark. NaN is kept, so that its field can be named.

    Raises:
        ApiError: 400 when it is not UTF-8 JSON, is nested too deeply, or repeats a key.
    """
    try:
        return json.loads(body.decode("utf-8-sig"), object_pairs_hook=_no_repeated_keys)
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
    """Validate a JSON value as `model`.

    Raises:
        ApiError: 400 naming every bad field, its value and what is allowed.
    """
    if not isinstance(value, dict):
        raise ApiError(
            400,
            "invalid_body",
            f"the body is a JSON {_json_type(value)}: send an object with the field(s) "
            f"{', '.join(model.supported())}",
        )
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _as_api_error(error.errors(include_url=False), model) from None


def _as_api_error(errors: list[ErrorDetails], model: type[RequestModel]) -> ApiError:
    """A field that we do not support is named alone: without it, the rest may be right."""
    first = next((item for item in errors if item["type"] == UNSUPPORTED), None)
    if first is not None:
        path = _path(first["loc"])
        message = f"{path}: {first['msg']} (got {_shown(first['input'])}): leave it out"
        detail = {"allowed": model.supported()} if len(first["loc"]) == 1 else {}
        return ApiError(400, UNSUPPORTED, message, param=path, detail=detail)
    is_unknown = errors[0]["type"] == "extra_forbidden"
    return ApiError(
        400,
        "unknown_field" if is_unknown else "invalid_value",
        "; ".join(dict.fromkeys(_problem(item, model) for item in errors)),
        param=_path(errors[0]["loc"]) or None,
    )


def _problem(item: ErrorDetails, model: type[RequestModel]) -> str:
    path = _path(item["loc"]) or "body"
    if item["type"] == "extra_forbidden":
        is_ours = len(item["loc"]) == 1
        hint = f"; {nearest(str(item['loc'][0]), model.supported())}" if is_ours else ""
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
