"""The page for every reader: languages, themes, sizes, keyboard, axe, and how fast it is there."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.page.conftest import OpenPage, ask, wait_until_answered
from tests.page.stand_in_backend import ANSWER
from tests.page.stand_in_clinic import StandInClinic

if TYPE_CHECKING:
    from playwright.sync_api import Page

QUESTION = "What are the first signs of Parkinson's disease?"
MAX_FIRST_PAINT_MS = 1000


def test_the_language_is_switched_and_remembered(open_page: OpenPage) -> None:
    page = open_page()
    ask(page, QUESTION)
    wait_until_answered(page)
    page.get_by_role("button", name="Français").click()
    assert page.locator("html").get_attribute("lang") == "fr"
    assert page.locator("#ask-button").inner_text() == "Demander"
    assert page.locator(".who-name").inner_text() == "Neurologie"
    assert page.locator(".opinion .text").inner_text() == ANSWER
    page.reload()
    assert page.get_by_role("heading", level=1).inner_text().startswith("Posez votre question")
    page.get_by_role("button", name="English").click()
    assert page.locator("#ask-button").inner_text() == "Ask"


def test_switching_the_language_in_mid_stream_loses_nothing(
    open_page: OpenPage, clinic: StandInClinic
) -> None:
    clinic.backend.word_s = 0.03
    page = open_page()
    ask(page, QUESTION)
    page.locator(".opinion .text.open:not(.waiting)").wait_for()
    page.get_by_role("button", name="Français").click()
    wait_until_answered(page)
    assert page.locator(".opinion .text").inner_text() == ANSWER
    assert "57 jetons" in page.locator(".opinion .facts").inner_text()


def background(page: "Page") -> str:
    color: str = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    return color


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_switched(
    open_page: OpenPage, scheme: str
) -> None:
    page = open_page(color_scheme=scheme)
    followed = background(page)
    button = page.get_by_role("button", name="Dark")
    assert button.get_attribute("aria-pressed") == str(scheme == "dark").lower()
    button.click()
    switched = background(page)
    assert switched != followed
    assert button.get_attribute("aria-pressed") == str(scheme != "dark").lower()
    page.reload()
    assert background(page) == switched


@pytest.mark.parametrize("locale", ["en-GB", "fr-FR"])
def test_a_phone_needs_no_horizontal_scroll(open_page: OpenPage, locale: str) -> None:
    page = open_page(viewport={"width": 360, "height": 740}, locale=locale, has_touch=True)
    page.locator("#duty li").first.wait_for()
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 360
    page.locator("label[for=who-consult]").click()
    page.locator("#consult").select_option("3")
    ask(page, "My heart races when I climb stairs. " + "Aaaaaaaaaa" * 30)
    wait_until_answered(page)
    assert page.evaluate(width) == 360
    page.locator("a[data-view=operator]").click()
    page.locator("#report table").first.wait_for()
    assert page.evaluate(width) == 360


def test_on_a_phone_the_answer_comes_into_sight_and_stop_stays_at_hand(
    open_page: OpenPage, clinic: StandInClinic
) -> None:
    clinic.backend.word_s = 0.03
    page = open_page(viewport={"width": 360, "height": 640}, reduced_motion="reduce")
    page.locator("#duty li").first.wait_for()
    page.locator("#ask-button").scroll_into_view_if_needed()
    ask(page, QUESTION)
    page.locator(".opinion .text.open:not(.waiting)").wait_for()
    stop = page.locator("#stop-button").bounding_box()
    assert stop is not None
    assert 500 < stop["y"] < 640
    wait_until_answered(page)
    top = page.locator(".who-name").evaluate("e => e.getBoundingClientRect().top")
    assert 0 <= top < 320


def focused(page: "Page") -> str:
    described: str = page.evaluate(
        "document.activeElement.id || document.activeElement.textContent.trim()"
    )
    return described


def test_the_keyboard_alone_is_enough(open_page: OpenPage, clinic: StandInClinic) -> None:
    clinic.backend.word_s = 0.03
    page = open_page()
    page.locator("#duty li").first.wait_for()
    order = []
    for _ in range(7):
        page.keyboard.press("Tab")
        order.append(focused(page))
    assert order == [
        "Skip to the content",
        "Polyclinic",
        "Ask",
        "Operator",
        "key-button",
        "theme-button",
        "language-button",
    ]
    page.keyboard.press("Tab")
    assert focused(page) == "question"
    page.keyboard.type(QUESTION)
    page.keyboard.press("Tab")
    assert focused(page) == "who-auto"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    assert focused(page) == "consult"
    page.keyboard.press("Tab")
    assert focused(page) == "ask-button"
    page.keyboard.press("Enter")
    page.locator("#stop-button").wait_for()
    assert focused(page) == "stop-button"
    wait_until_answered(page)
    assert focused(page) == "ask-button"
    assert page.locator(".opinion").count() == 2


def test_ctrl_enter_sends_and_the_skip_link_skips(open_page: OpenPage) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert focused(page) == "main"
    page.keyboard.press("Tab")
    assert focused(page) == "question"
    page.keyboard.type(QUESTION)
    page.keyboard.press("Control+Enter")
    wait_until_answered(page)
    assert page.locator(".who-name").inner_text() == "Neurology"
    assert focused(page) == "question"


def test_reduced_motion_is_honoured(open_page: OpenPage, clinic: StandInClinic) -> None:
    clinic.backend.word_s = 0.05
    moving = "getComputedStyle(document.querySelector('.text.open'), '::after').animationDuration"
    for preference, duration in (("no-preference", "1.1s"), ("reduce", "0s")):
        page = open_page(reduced_motion=preference)
        ask(page, QUESTION)
        page.locator(".opinion .text.open:not(.waiting)").wait_for()
        assert page.evaluate(moving) == duration


def test_first_paint_is_fast(open_page: OpenPage, record_property: Any) -> None:
    page = open_page()
    page.locator("#duty li").first.wait_for()
    paints = page.evaluate("performance.getEntriesByType('paint').map(e => [e.name, e.startTime])")
    named = dict(paints)
    assert named["first-contentful-paint"] < MAX_FIRST_PAINT_MS, named
    record_property("first_contentful_paint_ms", named["first-contentful-paint"])


def violations(page: "Page") -> list[str]:
    """What axe finds, with every rule that it has switched on by default."""
    import axe_playwright_python

    source = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text("utf-8")
    page.evaluate(source)
    result = page.evaluate("axe.run()")
    assert result["passes"], "axe looked at nothing"
    return [
        f"{rule['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
        for rule in result["violations"]
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("locale", ["en-GB", "fr-FR"])
def test_axe_finds_nothing(
    open_page: OpenPage, clinic: StandInClinic, locale: str, scheme: str
) -> None:
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    page = open_page(locale=locale, color_scheme=scheme, refusals=True)
    page.locator("#duty li").first.wait_for()
    found = {"welcome": violations(page)}
    ask(page, " ")
    found["empty question"] = violations(page)
    for choice in ("who-specialist", "who-consult"):
        page.locator(f"label[for={choice}]").click()
        found[choice] = violations(page)
    ask(page, "My heart races and I am short of breath when I climb stairs.")
    wait_until_answered(page)
    found["second opinion"] = violations(page)
    page.locator("label[for=who-auto]").click()
    ask(page, "Qu'est-ce que l'eczéma ?")
    page.locator(".notice").wait_for()
    wait_until_answered(page)
    found["answer"] = violations(page)
    ask(page, "My keys are lost")
    page.locator("#problem .problem").wait_for()
    found["failure"] = violations(page)
    page.locator("#key-button").click()
    found["key"] = violations(page)
    page.keyboard.press("Escape")
    page.locator("a[data-view=operator]").click()
    page.locator("#report table").first.wait_for()
    found["operator"] = violations(page)
    clinic.keys.admin_key = "boss"
    page.locator("#admin-form").wait_for()
    found["admin key"] = violations(page)
    lines = [f"{place}: {problem}" for place, problems in found.items() for problem in problems]
    assert not lines, "\n".join(lines)
