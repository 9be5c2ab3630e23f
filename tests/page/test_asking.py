"""Asking in the browser: the stream, the routes, second opinions, refusals, losses, stopping."""

import re
import time
from typing import TYPE_CHECKING

import pytest

from tests.page.conftest import OpenPage, ask, wait_until_answered
from tests.page.stand_in_backend import ADVICE, ANSWER, ANSWERS
from tests.page.stand_in_clinic import StandInClinic

if TYPE_CHECKING:
    from playwright.sync_api import Page

PARKINSON = "What are the first signs of Parkinson's disease?"
ECZEMA_FR = "Qu'est-ce que l'eczéma, et est-ce contagieux ?"
STAIRS = "My heart races and I am short of breath when I climb stairs."


def said(page: "Page", selector: str) -> str:
    return page.locator(selector).inner_text()


def test_an_answer_says_who_speaks_and_why(open_page: OpenPage) -> None:
    page = open_page()
    ask(page, PARKINSON)
    wait_until_answered(page)
    assert page.locator(".opinion .text").inner_text() == ANSWER
    assert page.locator(".who-name").inner_text() == "Neurology"
    assert "version 2" in said(page, ".by")
    why = said(page, "#why")
    assert "sure enough: this is a question for Neurology" in why
    assert "99%" in why
    assert "0.2%" in why
    assert "Read as English" in why
    assert "routed in" in why
    assert page.locator("#asked mark").all_inner_texts() == ["signs", "Parkinson's disease"]
    facts = said(page, ".opinion .facts")
    assert "Complete" in facts
    assert "57 tokens" in facts
    assert "first word after" in facts


def test_a_french_reader_asks_in_french(open_page: OpenPage) -> None:
    page = open_page(locale="fr-FR")
    assert page.locator("html").get_attribute("lang") == "fr"
    ask(page, ECZEMA_FR)
    wait_until_answered(page)
    assert page.locator(".who-name").inner_text() == "Dermatologie"
    why = said(page, "#why")
    assert "Le routeur est assez sûr" in why
    assert "97 %" in why.replace("\u202f", " ").replace("\u00a0", " ")
    assert "la réponse est en anglais" in why
    assert page.locator("#asked mark").all_inner_texts() == ["eczéma", "contagieux"]
    assert page.locator(".opinion .text").get_attribute("lang") == "en"


def test_the_stream_is_seen_growing(open_page: OpenPage, clinic: StandInClinic) -> None:
    clinic.backend.word_s = 0.05
    page = open_page()
    ask(page, PARKINSON)
    text = page.locator(".opinion .text")
    page.locator(".opinion .text.open:not(.waiting)").wait_for()
    lengths = []
    for _ in range(4):
        lengths.append(len(text.inner_text()))
        time.sleep(0.3)
    assert lengths == sorted(set(lengths)), lengths
    assert 0 < lengths[0] < lengths[-1] < len(ANSWER)
    assert page.locator("#opinions").get_attribute("aria-busy") == "true"
    wait_until_answered(page)
    assert text.inner_text() == ANSWER


def test_screen_readers_hear_milestones_not_tokens(open_page: OpenPage) -> None:
    page = open_page()
    page.evaluate(
        """() => {
          window.heard = [];
          const announcer = document.querySelector("#announcer");
          const hear = () => window.heard.push(announcer.textContent);
          new MutationObserver(hear).observe(announcer, {childList: true});
        }"""
    )
    ask(page, PARKINSON)
    wait_until_answered(page)
    heard = page.evaluate("window.heard")
    assert [re.sub("[.…]+$", "", text) for text in heard] == [
        "Finding the right specialist",
        "Answering: Neurology",
        "The answer is complete",
    ]
    assert page.locator("#opinions").evaluate("e => e.closest('[aria-live]')") is None


@pytest.mark.parametrize("number", [2, 3])
def test_second_opinions_stand_side_by_side(open_page: OpenPage, number: int) -> None:
    page = open_page()
    page.get_by_text("Second opinion").click()
    page.get_by_label("Specialists side by side").select_option(str(number))
    ask(page, STAIRS)
    wait_until_answered(page)
    names = ["Cardiology", "Pulmonology", "Endocrinology and metabolism"][:number]
    assert page.locator(".who-name").all_inner_texts() == names
    spoken = [ANSWERS["cardiology"], ANSWERS["pulmonology"], ANSWER]
    assert page.locator(".opinion .text").all_inner_texts() == spoken[:number]
    assert page.locator(".opinion .share").all_inner_texts() == ["52%", "38%", "4%"][:number]
    boxes = [card.bounding_box() for card in page.locator(".opinion").all()]
    assert len({box["y"] for box in boxes if box}) == 1, "not side by side"
    assert "hear them side by side" in said(page, "#why")


def test_an_ambiguous_question_recommends_the_second_opinion(open_page: OpenPage) -> None:
    page = open_page()
    ask(page, STAIRS)
    wait_until_answered(page)
    assert page.locator(".who-name").inner_text() == "Generalist"
    assert "Ask for a second opinion" in said(page, "#why")


def test_out_of_scope_is_said(open_page: OpenPage) -> None:
    page = open_page()
    ask(page, "How do I bake a sourdough loaf?")
    wait_until_answered(page)
    assert "does not look like a question for a clinic" in said(page, "#why")


def test_a_specialist_of_ones_choice(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_text("A specialist", exact=True).click()
    choice = page.get_by_label("Specialty")
    on_duty = choice.locator("optgroup").nth(0).locator("option").all_inner_texts()
    without = choice.locator("optgroup").nth(1).locator("option").all_inner_texts()
    assert len(on_duty) == 12
    assert without == ["Obstetrics and gynecology", "Psychiatry"]
    choice.select_option("oncology")
    ask(page, PARKINSON)
    wait_until_answered(page)
    assert page.locator(".who-name").inner_text() == "Oncology"
    assert "You chose Oncology" in said(page, "#why")
    choice.select_option("psychiatry")
    page.locator("#ask-button").click()
    page.get_by_text("no specialist is on duty").wait_for()
    assert "Base model" in said(page, ".by")


def test_examples_fill_the_question(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_role("button", name=PARKINSON).click()
    assert page.get_by_label("Your question").input_value() == PARKINSON
    assert page.locator("#question").evaluate("e => e === document.activeElement")


def test_markup_in_a_question_stays_text(open_page: OpenPage) -> None:
    page = open_page()
    question = "<img src=x onerror=alert(1)> signs of parkinson's disease <b>now</b>"
    ask(page, question)
    wait_until_answered(page)
    assert said(page, "#asked q") == question
    assert page.locator("#asked img, #asked b").count() == 0


def test_an_urgent_question_is_said_to_be_so_above_the_answer(open_page: OpenPage) -> None:
    page = open_page()
    ask(page, "Is it a stroke? Her face droops.")
    wait_until_answered(page)
    alert = page.get_by_role("alert").filter(has_text="emergency number")
    assert alert.is_visible()
    assert page.locator(".opinion .text").inner_text() == ADVICE + ANSWER
    ask(page, PARKINSON)
    wait_until_answered(page)
    assert said(page, "#urgent") == ""
