"""The operator's and a client's calls of scripts/benchmarks/hot_add.py."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from scripts.benchmarks.load_client import LoadError
from scripts.benchmarks.streams import chat_body
from scripts.benchmarks.token_times import Window

_TIMEOUT_S = 120.0
_ANSWERS_PER_REPLICA = 3  # asked for together, so that each replica is likely to get some


class Operator:
    """
    Args:
        user, admin: header fields with a key.
        replicas: that must confirm each change.
    """

    def __init__(
        self, url: str, user: Mapping[str, str], admin: Mapping[str, str], replicas: int
    ) -> None:
        self.url = url
        self._user = user
        self._admin = admin
        self._replicas = replicas

    async def change(self, method: str, path: str, status: int, **body: Any) -> Window:
        """From before the request to after the reply. A thread waits, so that streams are read on.

        Raises:
            LoadError: another status, or a replica that has not confirmed.
        """
        where = f"/v1/adapters{path}"
        started = time.perf_counter()
        found, content = await asyncio.to_thread(self._call, method, where, body, self._admin)
        stopped = time.perf_counter()
        if found != status:
            raise LoadError(f"{method} {where}: status {found}, not {status}: {content}")
        problem = unconfirmed(content, self._replicas, body.get("version"))
        if problem:
            raise LoadError(f"{method} {where}: {problem}")
        return started, stopped

    async def check_version(self, name: str, version: str) -> int:
        """Ask for a few answers at once; how many, all of them naming `version`.

        Raises:
            LoadError: one failed, or names another version.
        """
        asked = [
            self._version_of_answer(name) for _ in range(_ANSWERS_PER_REPLICA * self._replicas)
        ]
        named = await asyncio.gather(*asked)
        others = sorted(set(named) - {version})
        if others:
            raise LoadError(f"{name}: answers of {', '.join(others)} after {version} was confirmed")
        return len(named)

    async def versions(self, name: str) -> tuple[str, str]:
        """(the version in force, the one that it replaced)"""
        _, content = await asyncio.to_thread(self._call, "GET", "/v1/adapters", None, self._admin)
        adapter = next(a for a in content["adapters"] if a["name"] == name)
        return adapter["version"], adapter["previous"][-1]

    def served(self) -> dict[str, Any]:
        """What a model replica says of itself."""
        _, ready = self._call("GET", "/readyz", None, self._admin)
        keys = ("base_model", "decoder", "device", "dtype")
        return {key: ready[key] for key in keys} | {"replicas": self._replicas}

    async def _version_of_answer(self, name: str) -> str:
        body = chat_body(name, 4, stream=False)
        status, content = await asyncio.to_thread(
            self._call, "POST", "/v1/chat/completions", body, self._user
        )
        if status != 200:
            raise LoadError(f"{name}: status {status}: {content.get('error')}")
        return str(content["polyclinic"]["adapter_version"])

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, Any]]:
        return call(self.url, method, path, body, headers)


def call(
    url: str, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
) -> tuple[int, dict[str, Any]]:
    """(status, content), whatever the status.

    Raises:
        OSError: no HTTP answer.
    """
    data = json.dumps(body).encode() if body else None
    fields = {**headers, **({"content-type": "application/json"} if data else {})}
    request = urllib.request.Request(f"{url}{path}", data, fields, method=method)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            return int(response.status), json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def is_ready(url: str, admin: Mapping[str, str], replicas: int) -> bool:
    """Whether so many model replicas serve, and hold every adapter of the catalogue."""
    try:
        status, content = call(url, "GET", "/v1/adapters", None, admin)
    except (OSError, ValueError):  # ValueError: the proxy's own words while nothing is routed yet
        return False
    return status == 200 and len(content["replicas"]) == replicas and not content["unconfirmed"]


def unconfirmed(content: Mapping[str, Any], replicas: int, version: str | None) -> str | None:
    """Why the reply to a change does not say that it is live everywhere, on the device; None: it
    does."""
    if not content["confirmed"] or content["replicas"] != replicas:
        return (
            f"confirmed {content['confirmed']} by {content['replicas']} of {replicas} replicas: "
            f"{content['unconfirmed']}"
        )
    if version is None:
        return None
    held = content["adapter"]["replicas"]
    missing = [
        r for r, versions in held.items() if versions.get(version, {}).get("tier") != "device"
    ]
    return f"version {version} is not on the device of {', '.join(missing)}" if missing else None
