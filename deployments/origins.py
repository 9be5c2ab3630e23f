"""Origins, hosts and paths, as an operator names them in the settings."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

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


def check_path(path: str) -> str:
    """Return the path of a file or folder, or the address of one.

    Raises:
        ValueError: no file can have this name, or its `~name` is nobody's.
    """
    if "\0" in path:
        raise ValueError("a path without NUL characters is expected")
    if longest := max((part for part in path.split("/") if len(part.encode()) > 255), default=""):
        raise ValueError(f"a part of the path has {len(longest.encode())} bytes, at most 255")
    try:
        Path(path).expanduser()
    except RuntimeError:
        raise ValueError("~ names a user that this machine does not have") from None
    return path


PathText = Annotated[str, Field(min_length=1, max_length=4000), AfterValidator(check_path)]
