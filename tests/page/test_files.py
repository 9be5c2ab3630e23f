"""The page's files: small, whole, from nowhere else, and without a line that a policy forbids."""

import fnmatch
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from deployments.api.pages import WEB_DIR

ROOT = Path(__file__).resolve().parent.parent.parent
MAX_TOTAL_BYTES = 150_000
SCRIPTS = sorted(path.name for path in WEB_DIR.glob("*.js"))


class Markup(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self._in_script = False
        self.feed((WEB_DIR / "index.html").read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._in_script = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script and data.strip():
            self.inline.append(data)


def text_of(name: str) -> str:
    return (WEB_DIR / name).read_text(encoding="utf-8")


def test_the_whole_page_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in WEB_DIR.iterdir()}
    assert len(sizes) > 10
    assert sum(sizes.values()) <= MAX_TOTAL_BYTES, sizes


def test_nothing_comes_from_elsewhere() -> None:
    for path in WEB_DIR.iterdir():
        urls = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", text_of(path.name))
        assert set(urls) <= {"http://www.w3.org/2000/svg"}, path.name  # a name, not a request


def test_no_script_style_or_handler_is_inline() -> None:
    markup = Markup()
    assert not markup.inline
    assert len(markup.tags) > 50
    for tag, attributes in markup.tags:
        assert "style" not in attributes, tag
        assert tag != "style"
        assert tag != "script" or "src" in attributes
        assert not [name for name in attributes if name.startswith("on")], tag


def test_every_address_is_relative_and_leads_to_a_file() -> None:
    """Serve may mount the application under a prefix."""
    found = []
    for _, attributes in Markup().tags:
        for name in ("src", "href"):
            address = attributes.get(name)
            if address and not address.startswith("#"):
                found.append(address)
    assert len(found) >= 8
    for address in found:
        assert address.startswith("static/"), address
        assert (WEB_DIR / address.removeprefix("static/")).is_file(), address


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_insert_text_never_markup(name: str) -> None:
    source = text_of(name)
    forbidden = "innerHTML outerHTML insertAdjacentHTML document.write eval( Function( DOMParser"
    for word in forbidden.split():
        assert word not in source, word


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_import_files_that_are_there_and_call_relative_paths(name: str) -> None:
    source = text_of(name)
    for imported in re.findall(r'from "([^"]+)"', source):
        assert imported.startswith("./")
        assert (WEB_DIR / imported).is_file(), imported
    for called in re.findall(r'(?:fetch|call)\("([^"]+)"', source):
        assert not called.startswith("/"), called


def test_every_id_that_a_script_asks_for_is_in_the_page() -> None:
    ids = {attributes["id"] for _, attributes in Markup().tags if "id" in attributes}
    asked = {
        name for script in SCRIPTS for name in re.findall(r'byId\("([^"]+)"\)', text_of(script))
    }
    assert len(asked) > 20
    assert asked <= ids, asked - ids


def test_the_package_carries_every_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["deployments"]
    for path in WEB_DIR.iterdir():
        relative = str(path.relative_to(ROOT / "deployments"))
        assert any(fnmatch.fnmatch(relative, pattern) for pattern in patterns), relative
