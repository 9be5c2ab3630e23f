"""Give a running Serve the settings of a changed serve_config.yaml.

`user_config` takes effect in place; a change under `args` restarts the application's deployments.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from deployments.startup.status import (
    Addresses,
    application_states,
    auth_token,
    describe_states,
    essence,
    failure,
    open_url,
    readiness,
)

POLL_S = 0.5
_REQUEST_TIMEOUT_S = 60.0
_REFUSED = (401, 403)


class ApplyError(Exception):
    """The settings did not take effect; the text says why and what to do."""


def apply_config(content: Mapping[str, Any], addresses: Addresses, *, timeout_s: float) -> None:
    """Send a checked configuration to the dashboard and wait until the application runs with it.

    Raises:
        ApplyError: nobody there, refused, failed, or not running within `timeout_s`.
    """
    _send(content, addresses)
    deadline = time.monotonic() + timeout_s
    while True:
        time.sleep(POLL_S)
        applications = application_states(addresses)
        if failed := failure(applications):
            raise ApplyError(failed)
        states = {application.get("status") for application in applications.values()}
        if states == {"RUNNING"} and readiness(addresses) is not None:
            return
        if time.monotonic() > deadline:
            raise ApplyError(f"not running within --timeout_s: {describe_states(applications)}")


def _send(content: Mapping[str, Any], addresses: Addresses) -> None:
    request = urllib.request.Request(
        addresses.applications,
        json.dumps(content).encode(),
        {"Content-Type": "application/json"},
        method="PUT",
    )
    try:
        with open_url(request, token=auth_token(), timeout_s=_REQUEST_TIMEOUT_S):
            return
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")
        if error.code in _REFUSED:
            raise ApplyError(
                f"{addresses.dashboard} refuses our token (status {error.code}): run this as the "
                "user who started the service, or set RAY_AUTH_TOKEN to its token"
            ) from None
        raise ApplyError(f"{addresses.dashboard} answers {error.code}: {essence(text)}") from None
    except (OSError, http.client.HTTPException) as error:
        raise ApplyError(
            f"{addresses.dashboard} does not answer ({error}): start the service first (make "
            "serve), or name its dashboard with --dashboard, as the launcher printed it"
        ) from None
