"""Which paths need what: open, a key, or an admin key.

A path that is in neither table needs a key, so a new route is closed until somebody opens it.
"""

from collections.abc import MutableMapping
from typing import Any, Literal

Need = Literal["nothing", "key", "admin"]

# The page and what it loads, probes, and the description of the API. They hold no answers.
OPEN_PATHS = frozenset({"", "/", "/healthz", "/readyz", "/openapi.json", "/favicon.ico"})
OPEN_PREFIXES = ("/static",)
ADMIN_PREFIXES = ("/v1/adapters", "/v1/operator", "/v1/keys")
# The page: it may load its own scripts and styles, which the API's answers have no need to.
PAGE_PATHS = frozenset({"", "/"})


def need_of(path: str) -> Need:
    """What a request to `path` (see `local_path`) must show."""
    if _under(path, ADMIN_PREFIXES):
        return "admin"
    if path in OPEN_PATHS or _under(path, OPEN_PREFIXES):
        return "nothing"
    return "key"


def is_page(path: str) -> bool:
    return path in PAGE_PATHS or _under(path, OPEN_PREFIXES)


def local_path(scope: MutableMapping[str, Any]) -> str:
    """The path below the prefix that Serve mounts us at, exactly as Starlette's routing sees it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path


def _under(path: str, prefixes: tuple[str, ...]) -> bool:
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in prefixes)
