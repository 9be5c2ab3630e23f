"""The operator's API from Python and the command line: one method for each call."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

TIMEOUT_S = 300.0  # a change waits for a fetch and for every replica


class ApiRefused(RuntimeError):
    """The server refused, or cannot be reached. `problems` holds one line for each reason."""

    def __init__(self, status: int | None, problems: list[str]) -> None:
        self.status = status
        self.problems = problems
        super().__init__("; ".join(problems))


class AdminClient:
    """Calls the operator's API.

    Args:
        url: of the clinic, such as http://127.0.0.1:8000.
        key: an admin key; None if the server needs none.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._key = key

    def listed(self) -> dict[str, Any]:
        return self._call("GET", "/v1/adapters")

    def routers(self) -> list[dict[str, Any]]:
        """Return what each router replica reports: `router_version`, or `problem`."""
        return list(self._call("GET", "/v1/operator")["routers"])

    def ready(self) -> dict[str, Any]:
        return self._call("GET", "/readyz")

    def add(self, name: str, source: str, version: str, **options: Any) -> dict[str, Any]:
        body = {"name": name, "source": source, "version": version, **options}
        return self._call("POST", "/v1/adapters", body)

    def update(self, name: str, **fields: Any) -> dict[str, Any]:
        return self._call("PATCH", f"/v1/adapters/{quote(name, safe='')}", fields)

    def roll_back(self, name: str) -> dict[str, Any]:
        return self._call("POST", f"/v1/adapters/{quote(name, safe='')}/rollback")

    def remove(self, name: str) -> dict[str, Any]:
        return self._call("DELETE", f"/v1/adapters/{quote(name, safe='')}")

    def add_passages(self, passages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Put passages on the reference shelf; those whose ids are there are replaced."""
        body = {"passages": list(passages), "replace": True}
        return self._call("POST", "/v1/references/passages", body)

    def remove_passages(self, ids: Sequence[str]) -> dict[str, Any]:
        return self._call("DELETE", "/v1/references/passages", {"ids": list(ids)})

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the body of the reply. Raises ApiRefused: any status but 2xx, or no answer."""
        headers = {"content-type": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
                found: dict[str, Any] = json.load(reply)
        except urllib.error.HTTPError as error:
            raise ApiRefused(error.code, _problems(error)) from None
        except (urllib.error.URLError, TimeoutError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ApiRefused(None, [f"{self._url}: no answer ({reason}): is it running?"]) from None
        return found


def _problems(error: urllib.error.HTTPError) -> list[str]:
    try:
        found = json.load(error)["error"]
        return list(found.get("problems") or [found["message"]])
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"HTTP {error.code} {error.reason}"]
