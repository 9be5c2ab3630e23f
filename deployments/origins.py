"""Origins and hosts, as an operator names them in the settings."""

import ipaddress
import re

_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?")
_HOST = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def check_origins(origins: list[str]) -> list[str]:
    """Return `cors_origins`.

    Raises:
        ValueError: one of them is not an origin.
    """
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"'{origin}' is not an origin: https://host or https://host:port is expected, "
                "without a path; * is not accepted"
            )
    return origins


def check_hosts(hosts: list[str]) -> list[str]:
    """Return `allowed_hosts`.

    Raises:
        ValueError: one of them is not a name, an address, `*.domain` or `*`.
    """
    for host in hosts:
        if host != "*" and not _HOST.fullmatch(host) and not _is_address(host):
            raise ValueError(
                f"'{host}' is not a host: a lower-case name or an address without a port is "
                "expected, *.domain for all below a domain, or * for any"
            )
    return hosts


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
