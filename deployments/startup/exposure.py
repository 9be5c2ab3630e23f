"""Whether a server may start where others can reach it, and whether anybody could ask it."""

import ipaddress
import os
from collections.abc import Mapping

from deployments.api.access.api_keys import KeyFileError, KeyStore, KeyTable, kept_records
from deployments.settings import Settings


def exposure_problems(host: str, settings: Settings) -> list[str]:
    """Return a problem if anybody may use the server and anybody can reach it; reads no file."""
    auth = settings.auth
    if auth.mode == "keys" or auth.allow_open or is_loopback(host):
        return []
    return [
        f"auth.mode: 'open' on http_options.host '{host}', which is not loopback: anybody who "
        "reaches this machine could ask without a key. Set args.auth.mode: keys and make one with "
        "python -m deployments.keys create; or http_options.host: 127.0.0.1; or, behind a gateway "
        "that checks who asks, args.auth.allow_open: true"
    ]


OPEN_RAY_HELP = "accept RAY_AUTH_MODE other than token: whoever reaches Ray's ports runs code"


def check_ray_auth(is_allowed: bool, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a problem if the environment turns Ray's token off, unless that was asked for.

    Ray's ports, each replica's gRPC port among them, unpickle what they get: without the token
    whoever reaches one of them runs code as this user.
    """
    mode = environment.get("RAY_AUTH_MODE", "token")
    if mode.lower() == "token" or is_allowed:
        return []
    return [
        f"RAY_AUTH_MODE: is '{mode}' in the environment, so whoever reaches a port of Ray would "
        "run code as this user: unset it, or set it to token; where nobody else reaches them, "
        "start with --allow_open_ray"
    ]


def key_file_problems(settings: Settings) -> list[str]:
    """Return a problem if `mode: keys` is set and no key is valid."""
    if settings.auth.mode == "open":
        return []
    store = KeyStore(settings.state_path)
    try:
        table = KeyTable(store.read() or kept_records(settings.state_path))
    except KeyFileError as error:
        if kept_records(settings.state_path):
            return []
        return [f"auth.mode: 'keys', and {store.path.parent} has a bad key file: {error}"]
    if len(table):
        return []
    return [
        f"auth.mode: 'keys', and {store.path} has no active key, so nobody could ask: make one "
        "with python -m deployments.keys create"
    ]


def is_loopback(host: str) -> bool:
    """Return whether it is `localhost`, 127.0.0.0/8 or ::1; other names are not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
