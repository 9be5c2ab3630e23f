"""Which names of this server a browser may use while no key is asked for.

A foreign page cannot read what another origin answers. But its own name may be pointed at this
machine after it was loaded (DNS rebinding): then the browser takes the answers for the page's own.
Such a request still carries the page's name in its Host header.
"""

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.api.errors import ApiError
from deployments.api.middleware import refuse
from deployments.settings import Settings


def guarded_hosts(settings: Settings) -> Sequence[str] | None:
    """Return the names that clients may use besides loopback's. None if any may be used: keys are
    asked for, or a gateway was named that checks who asks and gave no name."""
    hosts = settings.allowed_hosts
    if settings.auth.mode == "keys" or "*" in hosts or (settings.auth.allow_open and not hosts):
        return None
    return hosts


class HostCheck:
    """Answer 421 to a request for a host that is neither loopback nor listed."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = Headers(scope=scope).getlist("host")
            if len(given) > 1 or (given and not self._is_allowed(given[0])):
                await refuse(_refusal(given), scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_allowed(self, header: str) -> bool:
        host = _without_port(header)
        return host == "localhost" or _is_loopback(host) or any(_is(host, h) for h in self._hosts)


def _without_port(header: str) -> str:
    """Return the host of `host`, `host:port`, `[::1]` or `[::1]:port`, in lower case."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower().removesuffix(".")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is(host: str, listed: str) -> bool:
    if listed.startswith("*."):
        return host.endswith(listed[1:])
    return host == listed


def _refusal(given: Sequence[str]) -> ApiError:
    shown = ascii(", ".join(given)[:80])
    return ApiError(
        421,
        "host_not_allowed",
        f"Host: {shown} is not a name of this server: use localhost or 127.0.0.1, or let the "
        "operator list the name in args.allowed_hosts",
        param="host",
    )
