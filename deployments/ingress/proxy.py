"""What Ray Serve's HTTP proxy does with a request before it looks at it.

Serve calls `middlewares` where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it, as the launcher
has it. Serve's proxy sends any `x-request-id` back and puts it into its log, and ends with a 500
where that or `x-session-id` is not UTF-8; this comes before it.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.api.middleware import request_id_for
from deployments.ingress.proxy_errors import OwnErrors

# A client's id is read here, and how long Serve waits is not for a client to say.
_NOT_PASSED_ON = (b"x-request-id", b"x-request-timeout-seconds")
# Of the headers that Serve reads itself, as it spells them.
_READ_BY_SERVE = (b"x_session_id", b"serve_multiplexed_model_id")


def middlewares() -> list[Middleware]:
    return [Middleware(OwnErrors), Middleware(ReadableIds)]  # the last is the outermost


class ReadableIds:
    """Pass each request on with one x-request-id of our shape, the client's or a new one, and with
    headers that Serve can decode; what is not ASCII in them is spelt out, to be refused by us."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request_id = request_id_for(scope).encode()
            headers = [
                (name, _readable(name, value))
                for name, value in scope["headers"]
                if name.lower() not in _NOT_PASSED_ON
            ]
            scope = {**scope, "headers": [*headers, (b"x-request-id", request_id)]}
        await self._app(scope, receive, send)


def _readable(name: bytes, value: bytes) -> bytes:
    if value.isascii() or name.lower().replace(b"-", b"_") not in _READ_BY_SERVE:
        return value
    return ascii(value).encode()
