"""What a browser is told about every answer: no guessed types, no framing, no foreign content."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.paths import is_page, local_path

_EVERYWHERE = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_PAGE = (
    b"content-security-policy",
    b"default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    b"object-src 'none'",
)
_API = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_NOT_STORED = (b"cache-control", b"no-store")


class SecurityHeaders:
    """Adds them where the application has not set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = local_path(scope)
        wanted = (*_EVERYWHERE, _PAGE) if is_page(path) else (*_EVERYWHERE, _API, _NOT_STORED)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = list(message.get("headers", ()))
                names = {name.lower() for name, _ in own}
                added = [header for header in wanted if header[0] not in names]
                message = {**message, "headers": own + added}
            await send(message)

        await self._app(scope, receive, send_with_headers)
