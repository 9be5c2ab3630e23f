"""The page people try the clinic on: `/` and `/static/...`, read once and served from memory.

No path of a request reaches the file system. An ETag is the content's hash, so every replica gives
the same one; browsers keep a file and ask whether it is still valid (304).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

WEB_DIR = Path(__file__).resolve().parent.parent / "web"
INDEX = "index.html"
# The page loads nothing from elsewhere and holds no inline script or style.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def page_routes(folder: Path = WEB_DIR) -> list[Route]:
    """Read the page's files and return its routes.

    Raises:
        OSError: the folder cannot be read.
        ValueError: a file has a suffix that the page does not use.
    """
    files = {path.name: _read(path) for path in sorted(folder.iterdir()) if path.is_file()}

    async def index(request: Request) -> Response:
        return _reply(request, files[INDEX])

    async def static(request: Request) -> Response:
        file = files.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404)
        return _reply(request, file)

    return [Route("/", index), Route("/static/{name:path}", static)]


def _read(path: Path) -> _File:
    media_type = _MEDIA_TYPES.get(path.suffix)
    if media_type is None:
        allowed = ", ".join(_MEDIA_TYPES)
        raise ValueError(f"{path.name}: not a file of the page; allowed are {allowed}")
    content = path.read_bytes()
    return _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _reply(request: Request, file: _File) -> Response:
    headers = {
        "etag": file.etag,
        "cache-control": "no-cache",  # keep it, but ask each time
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    given = request.headers.get("if-none-match", "").split(",")
    known = {etag.strip().removeprefix("W/") for etag in given}
    if file.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
