"""GET / and /static/...: what comes with a file, what is kept, and what is not there."""

from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from deployments.api.app import create_api
from deployments.api.pages import WEB_DIR, page_routes
from tests.deployments.conftest import SmallBackend, error_of


async def test_the_page_comes_with_its_policy(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.content == (WEB_DIR / "index.html").read_bytes()
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", sorted(WEB_DIR.iterdir()), ids=lambda path: path.name)
async def test_every_file_is_served(client: httpx.AsyncClient, path: Path) -> None:
    response = await client.get(f"/static/{path.name}")
    assert response.content == path.read_bytes()
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    assert response.headers["content-type"].startswith(kinds.get(path.suffix, "text/html"))


async def test_a_kept_file_is_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/static/app.js")
    assert first.headers["cache-control"] == "no-cache"
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await client.get("/static/app.js", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b""), known
        assert again.headers["etag"] == etag
    changed = await client.get("/static/app.js", headers={"if-none-match": '"other"'})
    assert changed.status_code == 200
    assert (await client.get("/static/i18n.js")).headers["etag"] != etag


async def test_head_sends_no_body(client: httpx.AsyncClient) -> None:
    response = await client.head("/")
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize(
    "path", ["/static/none.js", "/static/../api.py", "/static/%2e%2e/api.py", "/static//etc/passwd"]
)
async def test_what_is_not_of_the_page_is_not_there(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.status_code == 404
    assert error_of(response)["code"] == "path_not_found"


async def test_it_is_only_read(client: httpx.AsyncClient) -> None:
    response = await client.post("/", json={})
    assert response.status_code == 405
    assert error_of(response)["code"] == "method_not_allowed"


async def test_under_a_prefix_the_page_finds_its_files(backend: SmallBackend) -> None:
    """Addresses are relative, so `/clinic` must become `/clinic/` first."""
    mounted = Starlette(routes=[Mount("/clinic", create_api(backend))])
    transport = httpx.ASGITransport(mounted)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        moved = await client.get("/clinic")
        assert moved.status_code == 307
        page = httpx.URL("http://host/clinic").join(moved.headers["location"])
        assert page.path == "/clinic/"
        assert (await client.get(page.join("static/app.js"))).status_code == 200


def test_a_strange_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "notes.bak").write_text("")
    with pytest.raises(ValueError, match=r"notes\.bak.*\.css"):
        page_routes(tmp_path)
