"""Footnotes: passages by keyboard, pointer and tap; what has no support; markup in a passage."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from deployments.live_settings import RouterLiveSettings
from references.passage import Passage
from tests.page import stand_in_backend
from tests.page.conftest import OpenPage, ask, wait_until_answered
from tests.page.stand_in_clinic import StandInClinic
from tests.page.test_reading_it import violations
from tests.references.passages import ECZEMA, HAIR, STONES

if TYPE_CHECKING:
    from playwright.sync_api import Page

QUESTION = "What is eczema?"
TRUE = "Eczema \U0001f34b is characterized by scaly lesions."
FALSE = "Lemons help."
SCRIPT = "<script>document.title='gone'</script><img src=x onerror=\"document.title='gone'\">"
Say = Callable[..., None]


@pytest.fixture
def say(clinic: StandInClinic, monkeypatch: pytest.MonkeyPatch) -> Say:
    """`say(mode, texts by adapter)`: what the clinic does with a question."""

    def set_up(mode: str, **texts: str) -> None:
        references = {"mode": mode, "named": "cite"}
        clinic.backend.limits = RouterLiveSettings.model_validate(
            {"max_question_chars": 400, "references": references}
        )
        for adapter, text in texts.items():
            monkeypatch.setitem(stand_in_backend.ANSWERS, adapter, text)

    return set_up


def answered(page: "Page", question: str = QUESTION) -> None:
    ask(page, question)
    wait_until_answered(page)


def tab_to(page: "Page", selector: str) -> None:
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"Tab does not reach {selector}")


def note_of(page: "Page") -> Any:
    return page.locator(".footnote-note:not([hidden])")


def test_footnotes_by_keyboard(open_page: OpenPage, say: Say) -> None:
    say("cite", neurology=f"{TRUE} {FALSE}")
    page = open_page()
    answered(page)
    assert page.locator(".opinion .text").inner_text().startswith(f"{TRUE} [1]")
    tab_to(page, ".marker")
    note = note_of(page)
    for text in (ECZEMA.title, ECZEMA.text, ECZEMA.source, ECZEMA.licence):
        assert text in note.inner_text()
    described = page.locator(".marker").get_attribute("aria-describedby")
    assert note.get_attribute("id") == described
    assert page.locator(".marker").get_attribute("aria-label") == f"Source 1: {ECZEMA.title}"
    page.keyboard.press("Escape")
    assert note.count() == 0
    assert page.evaluate("document.activeElement.className") == "marker"
    tab_to(page, ".sources summary")
    page.keyboard.press("Enter")
    passage = page.locator(".sources .passage")
    assert passage.inner_text() == ECZEMA.text
    tab_to(page, ".sources a")
    assert page.locator(".sources a").get_attribute("href") == ECZEMA.url


def test_footnotes_by_pointer_and_tap(open_page: OpenPage, say: Say) -> None:
    say("cite", neurology=TRUE)
    page = open_page()
    answered(page)
    page.locator(".marker").hover()
    assert ECZEMA.text in note_of(page).inner_text()
    note_of(page).hover()  # the pointer may go to the note
    assert note_of(page).count() == 1
    page.mouse.move(1, 1)
    note_of(page).wait_for(state="detached")
    phone = open_page(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    answered(phone)
    phone.locator(".marker").tap()
    assert ECZEMA.text in note_of(phone).inner_text()
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_sentence_without_support_is_seen_and_heard(open_page: OpenPage, say: Say) -> None:
    say("cite", neurology=f"{TRUE} {FALSE}")
    page = open_page()
    answered(page)
    (sentence,) = page.locator(".unsupported").all()
    assert sentence.inner_text().replace("\n", "") == f"{FALSE}(not in the sources)"
    line = "getComputedStyle(document.querySelector('.unsupported')).textDecorationStyle"
    assert page.evaluate(line) == "dotted"
    assert "dotted" in page.locator(".legend").inner_text()
    page.get_by_role("button", name="Français").click()
    assert "absent des sources" in page.locator(".unsupported").inner_text()
    assert "pointillé" in page.locator(".legend").inner_text()
    assert page.locator(".marker").get_attribute("aria-label") == f"Source 1 : {ECZEMA.title}"


def test_an_answer_that_is_not_supported_is_taken_back(open_page: OpenPage, say: Say) -> None:
    say("cite", neurology="Lemons help against it. They are sour.")
    page = open_page()
    answered(page)
    text = page.locator(".opinion .text").inner_text()
    assert text.startswith("What the references say:")
    assert "emons" not in text
    assert "did not support" in page.locator(".opinion .notice").inner_text()


def test_quoted_first_and_the_specialist_on_request(open_page: OpenPage, say: Say) -> None:
    say("quote", neurology=TRUE)
    page = open_page()
    answered(page)
    assert ECZEMA.text in page.locator(".opinion .text").inner_text()
    page.get_by_role("button", name="Let the specialist answer").click()
    page.locator(".opinion .text", has_text=TRUE).wait_for()
    wait_until_answered(page)
    assert page.locator(".opinion .text").inner_text().startswith(f"{TRUE} [1]")
    assert page.get_by_role("button", name="Let the specialist answer").count() == 0
    answered(page, "What are the signs of Parkinson's disease?")
    assert page.locator(".opinion .text").inner_text() == "No source was found for this question."
    assert page.locator(".sources").count() == 0


def test_a_list_of_signs(open_page: OpenPage, say: Say) -> None:
    say("quote")
    page = open_page()
    answered(page, "Which disease has tall stature and recorded signs?")
    assert "not a diagnosis" in page.locator(".opinion .text").inner_text()
    assert "not a diagnosis" in page.locator(".why .notice").inner_text()
    assert page.get_by_role("button", name="Let the specialist answer").count() == 0


def test_each_opinion_has_its_own_sources(
    open_page: OpenPage, clinic: StandInClinic, say: Say
) -> None:
    say("quote", cardiology=TRUE, pulmonology="Kidney stones are calculi in the kidney.")
    lungs = dataclasses.replace(STONES, specialty="pulmonology")
    clinic.backend.references.passages = [dataclasses.replace(ECZEMA, specialty=""), lungs]
    page = open_page()
    page.locator("label[for=who-consult]").click()
    answered(page, "Eczema and kidney stones on the stairs?")
    first, second = page.locator(".opinion").all()
    assert first.locator("summary").all_inner_texts() == [
        f"[1] {ECZEMA.title}",
        f"[2] {STONES.title}",
    ]
    assert second.locator("summary").first.inner_text() == f"[1] {STONES.title}"
    second.locator(".marker").focus()
    assert STONES.text in note_of(page).inner_text()


def test_markup_in_a_passage_is_text(open_page: OpenPage, clinic: StandInClinic, say: Say) -> None:
    say("quote")
    bad: Passage = dataclasses.replace(
        HAIR,
        title=f"Eczema {SCRIPT}",
        text=f"Scaly. {SCRIPT}",
        source=SCRIPT,
        licence=SCRIPT,
        url="javascript:alert(1)",
        synonyms=("eczema",),
    )
    clinic.backend.references.passages = [bad]
    page = open_page()
    title = page.title()
    answered(page)
    assert SCRIPT in page.locator(".opinion .text").inner_text()
    page.locator(".marker").focus()
    assert SCRIPT in note_of(page).inner_text()
    page.keyboard.press("Escape")
    page.locator(".sources summary").click()
    assert SCRIPT in page.locator(".sources .passage").inner_text()
    assert page.locator(".sources a, .opinion img, .opinion script").count() == 0
    assert page.title() == title


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("locale", ["en-GB", "fr-FR"])
def test_axe_finds_nothing_in_footnotes(
    open_page: OpenPage, say: Say, locale: str, scheme: str
) -> None:
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    say("cite", neurology=f"{TRUE} {FALSE}")
    page = open_page(locale=locale, color_scheme=scheme)
    answered(page)
    found = {"answer": violations(page)}
    page.locator(".marker").focus()
    found["note"] = violations(page)
    page.keyboard.press("Escape")  # the note lies over the list
    page.locator(".sources summary").click()
    found["source"] = violations(page)
    lines = [f"{place}: {problem}" for place, problems in found.items() for problem in problems]
    assert not lines, "\n".join(lines)
