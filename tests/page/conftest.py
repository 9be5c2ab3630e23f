"""A headless Chromium, the stand-in clinic, and pages that may neither complain nor look elsewhere.

pytest tests/page -m long          needs Debian's chromium and PyPI's playwright
"""

import re
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.page.stand_in_clinic import StandInClinic

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Chromium reports each refused request; the page says it in words as well.
REFUSED = "Failed to load resource"
QUESTION_LABEL = re.compile("Your question|Votre question")

OpenPage = Callable[..., "Page"]


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(CHROMIUM_NAMES)} is on the PATH")
    with sync_api.sync_playwright() as playwright:
        # --no-sandbox: containers run as root, and the page under test is ours.
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def clinic() -> Iterator[StandInClinic]:
    running = StandInClinic()
    running.start()
    yield running
    running.wait_until_idle()
    running.stop()


@pytest.fixture
def page_url(clinic: StandInClinic) -> str:
    """Where the page is. Another clinic can stand in here, as long as it knows the questions."""
    return clinic.url


@pytest.fixture
def open_page(browser: "Browser", page_url: str) -> Iterator[OpenPage]:
    """`open_page(path, refusals=True, **context)`; `refusals`: the server may refuse requests."""
    opened: list[tuple[Any, list[str]]] = []

    def open_one(path: str = "", *, refusals: bool = False, **context: Any) -> "Page":
        settings = {"locale": "en-GB", "viewport": {"width": 1200, "height": 800}, **context}
        page = browser.new_context(**settings).new_page()
        page.set_default_timeout(10_000)
        complaints: list[str] = []
        opened.append((page, complaints))

        def heard(message: Any) -> None:
            is_expected = refusals and (message.type == "warning" or REFUSED in message.text)
            if message.type in ("error", "warning") and not is_expected:
                complaints.append(f"console {message.type}: {message.text}")

        def asked(request: Any) -> None:
            if urlsplit(request.url).netloc != urlsplit(page_url).netloc:
                complaints.append(f"request to another origin: {request.url}")

        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
        page.on("request", asked)
        page.goto(page_url + path)
        return page

    yield open_one
    for page, complaints in opened:
        page.context.close()
        assert not complaints, "\n".join(complaints)


def ask(page: "Page", question: str) -> None:
    page.get_by_role("textbox", name=QUESTION_LABEL).fill(question)
    page.locator("#ask-button").click()


def wait_until_answered(page: "Page") -> None:
    page.locator("#opinions[aria-busy=false]").wait_for()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever drives the browser is long."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.long)
