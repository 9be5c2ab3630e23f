"""The application behind its front door: one call that a Serve shell or a test makes."""

import time
from collections.abc import Callable

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from deployments.api.api_keys import KeyTable
from deployments.api.auth import AuthMiddleware
from deployments.api.request_limits import RequestLimits
from deployments.api.security_headers import SecurityHeaders
from deployments.reloader import Reloader
from deployments.settings import AccessLimits, Settings

_EXPOSED = (
    "retry-after",
    "x-request-id",
    *(
        f"x-ratelimit-{a}-{b}"
        for a in ("limit", "remaining", "reset")
        for b in ("requests", "tokens")
    ),
)


def behind_front_door(
    app: ASGIApp,
    settings: Settings,
    keys: Reloader[KeyTable],
    live: Callable[[], AccessLimits],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> ASGIApp:
    """Security headers, size and time limits, CORS where origins are set, keys and rates; then
    `app`, which finds the caller in `scope["state"]["caller"]` when keys are on."""
    guarded: ASGIApp = AuthMiddleware(app, settings.auth, keys, live, clock)
    if settings.cors_origins:  # outside the gate: a preflight request carries no key
        guarded = CORSMiddleware(
            guarded,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "PATCH", "DELETE"),
            allow_headers=("authorization", "content-type", "x-api-key", "x-request-id"),
            expose_headers=_EXPOSED,
        )
    return SecurityHeaders(RequestLimits(guarded, lambda: live().body_timeout_s))
