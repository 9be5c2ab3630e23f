"""Whether a server may be started where others can reach it: the preflight asks."""

import ipaddress

from deployments.access.key_store import KeyFileError, KeyStore
from deployments.access.keys import KeyTable
from deployments.settings import Settings


def exposure_problems(host: str, settings: Settings) -> list[str]:
    """A server that anybody may use, on an address that anybody may reach. Looks at no file."""
    auth = settings.auth
    if auth.mode == "keys" or auth.allow_open or is_loopback(host):
        return []
    return [
        f"auth.mode: 'open' on http_options.host '{host}', which is not loopback: whoever reaches "
        "this machine could ask without a key. Set args.auth.mode: keys and make one with "
        "python -m deployments.keys create; or http_options.host: 127.0.0.1; or, behind a gateway "
        "that checks who asks, args.auth.allow_open: true"
    ]


def key_file_problems(settings: Settings) -> list[str]:
    """With mode: keys, a key file that lets nobody in."""
    if settings.auth.mode == "open":
        return []
    store = KeyStore(settings.state_path)
    try:
        table = KeyTable(store.read())
    except KeyFileError as error:
        return [f"auth.mode: 'keys', and {store.path.parent} has a bad key file: {error}"]
    if len(table):
        return []
    return [
        f"auth.mode: 'keys', and {store.path} has no active key, so nobody could ask: make one "
        "with python -m deployments.keys create"
    ]


def is_loopback(host: str) -> bool:
    """`localhost`, 127.0.0.0/8 or ::1; a name that would have to be looked up is not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
