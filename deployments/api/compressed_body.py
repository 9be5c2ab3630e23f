"""A body that was compressed with gzip, unpacked within the limit of its size."""

import zlib

from starlette.datastructures import Headers

from deployments.api.errors import ApiError

_GZIP = ("gzip", "x-gzip")


def is_compressed(headers: Headers) -> bool:
    """Whether the body is compressed with gzip.

    Raises:
        ApiError: 415, it is compressed with something else.
    """
    given = headers.get("content-encoding", "")
    encoding = given.strip().lower()
    if encoding not in ("", "identity", *_GZIP):
        raise ApiError(
            415,
            "unsupported_encoding",
            f"Content-Encoding is {ascii(given[:60])}: send the JSON uncompressed, or with gzip",
            param="content-encoding",
            headers={"accept-encoding": "gzip"},
        )
    return encoding in _GZIP


def unpacked(body: bytes, max_bytes: int) -> bytes:
    """Return the content of a gzip body; no more of it is unpacked than `max_bytes`.

    Raises:
        ApiError: 413, it holds more; 400, it is not gzip, or is cut off.
    """
    content = bytearray()
    while body:  # of one member after the other
        member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            content += member.decompress(body, max_bytes + 1 - len(content))
        except zlib.error:
            raise _not_gzip("is not gzip") from None
        if len(content) > max_bytes:
            raise too_large(len(content), max_bytes)
        if not member.eof:
            raise _not_gzip("is cut off")
        body = member.unused_data
    return bytes(content)


def _not_gzip(why: str) -> ApiError:
    message = f"Content-Encoding is gzip, and the body {why}: send the JSON uncompressed"
    return ApiError(400, "invalid_body", message, param="content-encoding")


def too_large(num_bytes: int, limit: int) -> ApiError:
    """Return the 413 of a body of more than `limit` bytes."""
    return ApiError(
        413,
        "body_too_large",
        f"the body is {num_bytes} bytes or more; at most {limit} are accepted",
        detail={"limit": limit},
    )
