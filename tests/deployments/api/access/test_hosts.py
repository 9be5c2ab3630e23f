"""DNS rebinding: while no key is asked for, only names that the operator knows are answered."""

from pathlib import Path
from typing import Any

import pytest

from deployments.api.app import create_api
from deployments.settings import Settings
from tests.deployments.api.access.conftest import Door
from tests.deployments.conftest import SmallBackend, error_of


def door(folder: Path, **args: Any) -> Door:
    return Door(folder, create_api(SmallBackend()), args)


OPEN: dict[str, Any] = {"auth": {"mode": "open"}}
GATEWAY: dict[str, Any] = {"auth": {"mode": "open", "allow_open": True}}
NAMES = ["clinic.example.org", "*.ward.example.org", "10.1.2.3"]


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "LOCALHOST:8000",
        "localhost.:8000",
        "127.0.0.1",
        "127.0.0.1:8000",
        "127.9.9.9",
        "[::1]",
        "[::1]:8000",
    ],
)
async def test_loopback_may_always_be_asked(tmp_path: Path, host: str) -> None:
    async with door(tmp_path, **OPEN).client() as client:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example:127.0.0.1",
        "127.0.0.1@evil.example",
        "192.168.1.7:8000",
        "0.0.0.0:8000",
        "[::ffff:10.0.0.1]",
        "[::]",
        "2130706433",
        "0x7f.1",
        "",
        ":8000",
        "[",
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/", "/readyz", "/healthz", "/v1/adapters"])
async def test_a_rebound_name_is_refused_on_every_path(
    tmp_path: Path, host: str, path: str
) -> None:
    async with door(tmp_path, **OPEN).client() as client:
        reply = await client.get(path, headers={"host": host})
        assert (reply.status_code, error_of(reply)["code"]) == (421, "host_not_allowed")
        assert reply.headers["x-request-id"]
        asked = await client.post("/ask", json={"question": "a rash"}, headers={"host": host})
        assert asked.status_code == 421


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("clinic.example.org", 200),
        ("Clinic.Example.org:443", 200),
        ("a.ward.example.org", 200),
        ("10.1.2.3:8000", 200),
        ("ward.example.org", 421),
        ("xward.example.org", 421),
        ("clinic.example.org.evil.example", 421),
        ("10.1.2.4", 421),
    ],
)
@pytest.mark.parametrize("args", [OPEN, GATEWAY])
async def test_names_that_the_operator_lists(
    tmp_path: Path, args: dict[str, Any], host: str, status: int
) -> None:
    async with door(tmp_path, **args, allowed_hosts=NAMES).client() as client:
        reply = await client.get("/v1/models", headers={"host": host})
        assert reply.status_code == status


@pytest.mark.parametrize(
    "args", [GATEWAY, {**OPEN, "allowed_hosts": ["*"]}, {"auth": {"mode": "keys"}}]
)
async def test_where_somebody_else_checks_who_asks_any_name_will_do(
    tmp_path: Path, args: dict[str, Any]
) -> None:
    async with door(tmp_path, **args).client() as client:
        assert (await client.get("/healthz", headers={"host": "any.example"})).status_code == 200


@pytest.mark.parametrize(
    "host", ["http://clinic", "clinic:8000", "Clinic", "a b", "*", "**.x", ".x", ""]
)
def test_a_host_is_a_name_without_scheme_and_port(host: str) -> None:
    if host == "*":
        assert Settings.model_validate({"allowed_hosts": [host]}).allowed_hosts == ["*"]
        return
    with pytest.raises(ValueError, match="is not a host"):
        Settings.model_validate({"allowed_hosts": [host]})
