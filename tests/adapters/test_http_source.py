"""Adapters over http: no redirect to another host, and no host that only the server can reach."""

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.http_source import HostRefused, open_http, public_addresses
from adapters.sources import SourceError, SourceLimits, check_source, fetch

LISTED = frozenset({"127.0.0.1", "localhost"})


class Handler(http.server.BaseHTTPRequestHandler):
    """/to?URL redirects there; other paths answer with themselves."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/to?"):
            self.send_response(int(self.headers.get("x-status", "302")))
            self.send_header("Location", self.path.partition("?")[2])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def servers() -> Iterator[tuple[str, str]]:
    """Two servers' addresses; both are loopback, on different ports."""
    Handler.asked = []
    started = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    for server in started:
        options = {"kwargs": {"poll_interval": 0.02}, "daemon": True}
        threading.Thread(target=server.serve_forever, **options).start()
    first, second = (f"127.0.0.1:{server.server_address[1]}" for server in started)
    yield first, second
    for server in started:
        server.shutdown()
        server.server_close()


def test_a_redirect_on_the_same_host_is_followed(servers: tuple[str, str]) -> None:
    with open_http(f"http://{servers[0]}/to?/file", LISTED) as opened:
        assert opened.read() == b"/file"


@pytest.mark.parametrize(
    "target",
    [
        "http://{other}/secret",
        "http://localhost:{port}/secret",
        "http://169.254.169.254/latest/meta-data/",
        "//evil.example/x",
        "https://evil.example/x",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://127.0.0.1:1/x",
    ],
)
def test_a_redirect_to_another_place_is_refused(servers: tuple[str, str], target: str) -> None:
    url = target.format(other=servers[1], port=servers[0].split(":")[1])
    with pytest.raises(OSError, match="(?i)redirect"):
        open_http(f"http://{servers[0]}/to?{url}", LISTED)
    assert len(Handler.asked) == 1


def test_a_circle_ends(servers: tuple[str, str]) -> None:
    chain = "/to?" * 12 + "/file"
    with pytest.raises(OSError, match="infinite loop"):
        open_http(f"http://{servers[0]}{chain}", LISTED)


def answering(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Make every name resolve to these addresses."""

    def lookup(host: str, port: int, **_: Any) -> list[Any]:
        families = [socket.AF_INET6 if ":" in a else socket.AF_INET for a in addresses]
        pairs = zip(families, addresses, strict=True)
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in pairs]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "10.0.0.1",
        "172.16.3.4",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "2002:7f00:1::",
        "::",
    ],
)
def test_an_address_that_is_not_public_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    answering(monkeypatch, "8.8.8.8", address)
    with pytest.raises(HostRefused, match=r"adapter_sources\.hosts"):
        public_addresses("models.example", 443, frozenset())
    assert public_addresses("models.example", 443, {"models.example"})


def test_public_addresses_may_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "8.8.8.8", "2606:4700::1111")
    assert len(public_addresses("models.example", 443, frozenset())) == 2


def test_the_operator_is_told_what_to_list(servers: tuple[str, str], tmp_path: Path) -> None:
    limits = SourceLimits(timeout_s=10)
    with pytest.raises(SourceError, match=r"127\.0\.0\.1.*not a public address.*hosts"):
        fetch(f"http://{servers[0]}/adapter", tmp_path, limits)
    assert Handler.asked == []
    listed = SourceLimits(timeout_s=10, hosts=LISTED)
    fetch(f"http://{servers[0]}/adapter", tmp_path, listed)
    assert sorted(Handler.asked) == [
        "/adapter/adapter_config.json",
        "/adapter/adapter_model.safetensors",
    ]


@pytest.mark.parametrize(
    ("source", "schemes", "wrong"),
    [
        ("https://host/x", ("file", "hf"), "scheme 'https'; allowed are file, hf"),
        ("http://host/x", ("https",), "scheme 'http'; allowed are https"),
        ("file:///srv/x", ("hf",), "scheme 'file'"),
        ("/srv/x", ("https",), "folders of the server are not allowed"),
        ("org/name", ("https",), "the hub is not allowed"),
        ("hf://org/name", ("https",), "scheme 'hf'"),
        ("gopher://host/x", ("https",), "scheme 'gopher'"),
    ],
)
def test_schemes_can_be_taken_away(source: str, schemes: tuple[str, ...], wrong: str) -> None:
    [problem] = check_source(source, schemes)
    assert wrong in problem
