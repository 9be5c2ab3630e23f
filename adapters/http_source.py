"""Fetch an adapter's file over http or https, from hosts that an operator may name.

A URL that comes from outside must not make this server ask what only it can reach: its own ports,
the machine's metadata service, its neighbours. So a host is refused where any of its addresses is
not public, unless it is listed; the connection goes to the address that was looked at; and a
redirect may lead to another path, never to another host.
"""

import http.client
import ipaddress
import socket
import ssl
import urllib.request
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_S = 30.0
_MAX_REDIRECTS = 5


class HostRefused(OSError):
    """The URL, or a redirect of it, names a host that may not be asked."""


def open_http(url: str, hosts: Collection[str]) -> Any:
    """Open a URL for reading bytes; the result is a context manager, as `urlopen` gives it.

    Args:
        hosts: those whose addresses need not be public.

    Raises:
        HostRefused: see above. OSError: no answer, or another status than 2xx.
    """
    opener = urllib.request.build_opener(
        # No proxy: it would look the host up by itself.
        urllib.request.ProxyHandler({}),
        _Plain(hosts),
        _Secure(hosts),
        _SameHost(url),
    )
    # Asked for as it is: a compressed answer would pass the limit on its size.
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    return opener.open(request, timeout=_TIMEOUT_S)


def public_addresses(host: str, port: int, hosts: Collection[str]) -> list[Any]:
    """Look a host up; returns getaddrinfo's entries.

    Raises:
        HostRefused: one of its addresses is not public, and it is not listed.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if host in hosts:
        return found
    for *_, address in found:
        if not _is_public(str(address[0])):
            raise HostRefused(
                f"{host} is at {address[0]}, which is not a public address: list it in "
                "args.adapter_sources.hosts if the server may ask it"
            )
    return found


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return (mapped or found).is_global and not found.is_multicast


class _SameHost(urllib.request.HTTPRedirectHandler):
    max_redirections = _MAX_REDIRECTS

    def __init__(self, url: str) -> None:
        self._first = urlsplit(url)

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        target = urlsplit(newurl)
        is_safer = (self._first.scheme, target.scheme) == ("http", "https")
        if target.scheme != self._first.scheme and not is_safer:
            raise HostRefused(f"it redirects from {self._first.scheme} to {target.scheme[:20]}")
        same_port = target.port == self._first.port or is_safer
        if target.hostname != self._first.hostname or not same_port:
            raise HostRefused(
                f"it redirects to another host ({(target.netloc or 'none')[:80]}): name the place "
                "where the file is"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _connect(connection: http.client.HTTPConnection, hosts: Collection[str]) -> socket.socket:
    host, port = connection.host, connection.port
    problem: OSError = OSError(f"{host}: no address")
    for family, kind, protocol, _, address in public_addresses(host, port, hosts):
        opened = socket.socket(family, kind, protocol)
        try:
            opened.settimeout(_TIMEOUT_S)
            opened.connect(address)
            return opened
        except OSError as error:
            opened.close()
            problem = error
    raise problem


class _Plain(urllib.request.HTTPHandler):
    def __init__(self, hosts: Collection[str]) -> None:
        super().__init__()
        self._hosts = hosts

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        hosts = self._hosts

        class Connection(http.client.HTTPConnection):
            def connect(self) -> None:
                self.sock = _connect(self, hosts)

        return self.do_open(Connection, req)


class _Secure(urllib.request.HTTPSHandler):
    def __init__(self, hosts: Collection[str]) -> None:
        super().__init__()
        self._hosts = hosts
        self._tls = ssl.create_default_context()

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        hosts, tls = self._hosts, self._tls

        class Connection(http.client.HTTPSConnection):
            def connect(self) -> None:
                self.sock = tls.wrap_socket(_connect(self, hosts), server_hostname=self.host)

        return self.do_open(Connection, req)
