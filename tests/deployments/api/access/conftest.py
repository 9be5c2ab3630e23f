"""The API behind its front door, on a small backend, with keys that a test makes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from deployments.api.access.api_keys import KeyKind, KeyStore, KeyTable, new_key
from deployments.api.app import behind_front_door, create_api
from deployments.live_settings import AccessLimits
from deployments.settings import parse_settings
from tests.deployments.conftest import SmallBackend


class Clock:
    """Seconds that stand still until a test moves them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Keys:
    """Implements auth.KeySource: reads the key file when a test says so."""

    def __init__(self, store: KeyStore) -> None:
        self.current = KeyTable()
        self._store = store

    def refresh(self) -> None:
        self.current = KeyTable(self._store.read())


@dataclass
class Door:
    """`args`: of the settings, e.g. {"auth": {"mode": "keys"}}. `live` may be replaced at any time;
    `app` is what the door guards."""

    folder: Path
    app: ASGIApp
    args: dict[str, Any] = field(default_factory=lambda: {"auth": {"mode": "keys"}})
    live: AccessLimits = field(default_factory=AccessLimits)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.store = KeyStore(self.folder)
        self.watch = Keys(self.store)

    def key(self, kind: KeyKind = "user", **limits: Any) -> dict[str, str]:
        """Make a valid key, and return the header that shows it."""
        key, record = new_key(kind, **limits)
        self.store.change(lambda records: [*records, record])
        self.watch.refresh()
        return {"authorization": f"Bearer {key}"}

    def built(self) -> ASGIApp:
        settings = parse_settings(self.args)
        return behind_front_door(
            self.app, settings, self.watch, lambda: self.live, clock=self.clock
        )

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.built())
        return httpx.AsyncClient(transport=transport, base_url="http://localhost")


@pytest.fixture
def door(tmp_path: Path, backend: SmallBackend) -> Door:
    return Door(tmp_path, create_api(backend))


@pytest.fixture
def door_of(tmp_path: Path) -> Callable[[ASGIApp], Door]:
    """A door in front of another application."""
    return lambda app: Door(tmp_path, app)
