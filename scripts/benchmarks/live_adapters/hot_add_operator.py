"""Make the operator's and a client's calls of `scripts.benchmark hot_add`."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from scripts.benchmarks.over_http.http_client import LoadError, call, chat_body
from scripts.benchmarks.over_http.streams import QUESTION, Window

_ANSWERS_PER_REPLICA = 3  # asked for together, so that each replica is likely to get some


@dataclass(frozen=True, slots=True)
class Operator:
    """Calls the service at `url`."""

    session: aiohttp.ClientSession
    url: str
    user: Mapping[str, str]  # header fields with a key
    admin: Mapping[str, str]  # header fields with a key
    replicas: int  # that must confirm each change

    async def change(self, method: str, path: str, status: int, **body: Any) -> Window:
        """Change an adapter; return when the request was sent and when the reply was there.

        Raises:
            LoadError: another status, or a replica that has not confirmed.
        """
        where = f"/v1/adapters{path}"
        started = time.perf_counter()
        found, content = await self._call(method, where, body)
        stopped = time.perf_counter()
        if found != status:
            raise LoadError(f"{method} {where}: status {found}, not {status}: {content}")
        problem = unconfirmed(content, self.replicas, body.get("version"))
        if problem:
            raise LoadError(f"{method} {where}: {problem}")
        return started, stopped

    async def check_version(self, name: str, version: str) -> int:
        """Ask for several answers at once and return how many, if all name `version`.

        Raises:
            LoadError: one failed, or names another version.
        """
        count = _ANSWERS_PER_REPLICA * self.replicas
        named = await asyncio.gather(*(self._version_of_answer(name) for _ in range(count)))
        others = sorted(set(named) - {version})
        if others:
            raise LoadError(f"{name}: answers of {', '.join(others)} after {version} was confirmed")
        return count

    async def versions(self, name: str) -> tuple[str, str]:
        """Return the served version and the one that it replaced."""
        _, content = await self._call("GET", "/v1/adapters")
        adapter = next(a for a in content["adapters"] if a["name"] == name)
        return adapter["version"], adapter["previous"][-1]

    async def served(self) -> dict[str, Any]:
        """Return what a model replica reports about itself."""
        _, ready = await self._call("GET", "/readyz")
        keys = ("base_model", "decoder", "device", "dtype")
        return {key: ready[key] for key in keys} | {"replicas": self.replicas}

    async def is_ready(self) -> bool:
        """Return whether all model replicas serve, and hold every adapter of the catalogue."""
        try:
            status, content = await self._call("GET", "/v1/adapters")
        except (OSError, ValueError):  # ValueError: the proxy's text while nothing is routed yet
            return False
        num_replicas = len(content["replicas"]) if status == 200 else 0
        return num_replicas == self.replicas and not content["unconfirmed"]

    async def models(self) -> list[dict[str, Any]]:
        """Return what each model replica says of itself; nothing while nothing is routed yet."""
        try:
            status, content = await self._call("GET", "/v1/operator")
        except (OSError, ValueError):
            return []
        return [model for model in content["models"] if "start" in model] if status == 200 else []

    async def _version_of_answer(self, name: str) -> str:
        body = chat_body(QUESTION, 4, model=name, stream=False)
        url = f"{self.url}/v1/chat/completions"
        status, content = await call(self.session, "POST", url, body, self.user)
        if status != 200:
            raise LoadError(f"{name}: status {status}: {content.get('error')}")
        return str(content["polyclinic"]["adapter_version"])

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> tuple[int, Any]:
        return await call(self.session, method, f"{self.url}{path}", body, self.admin)


def unconfirmed(content: Mapping[str, Any], replicas: int, version: str | None) -> str | None:
    """Return why the reply to a change does not show it live on every device, or None."""
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
