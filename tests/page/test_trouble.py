"""What goes wrong while one asks: refusals, losses, servers that go away, and stopping."""

from typing import TYPE_CHECKING

import pytest

from tests.page.conftest import OpenPage, ask, wait_until_answered
from tests.page.stand_in_backend import ANSWER, ANSWERS
from tests.page.stand_in_clinic import StandInClinic

if TYPE_CHECKING:
    from playwright.sync_api import Page

PARKINSON = "What are the first signs of Parkinson's disease?"


def said(page: "Page", selector: str) -> str:
    return page.locator(selector).inner_text()


def test_an_empty_question_is_refused_in_place(open_page: OpenPage) -> None:
    page = open_page()
    ask(page, "   ")
    assert "Write a question first" in said(page, "#question-error")
    assert page.locator("#question").get_attribute("aria-invalid") == "true"
    assert page.locator("#question").evaluate("e => e === document.activeElement")
    page.get_by_label("Your question").fill("a")
    assert said(page, "#question-error") == ""


def test_a_question_that_is_too_long_says_how_long_it_may_be(open_page: OpenPage) -> None:
    page = open_page(refusals=True)
    ask(page, "heart " * 100)
    page.locator("#problem .problem").wait_for()
    assert "at most 400 characters" in said(page, "#problem")
    assert page.locator(".opinion").count() == 0


def test_a_full_queue_says_when_to_come_back(open_page: OpenPage) -> None:
    page = open_page(refusals=True)
    ask(page, "Is the queue full?")
    page.locator("#problem .problem").wait_for()
    assert "Too many questions are waiting" in said(page, "#problem")
    assert "Try again in 2 s" in said(page, "#problem")
    ask(page, PARKINSON)
    wait_until_answered(page)
    assert page.locator("#problem .problem").count() == 0


def test_a_replica_lost_in_mid_stream_is_never_a_silent_end(open_page: OpenPage) -> None:
    page = open_page()
    ask(page, "My keys are lost")
    page.locator("#problem .problem").wait_for()
    assert "What stands here is not the whole" in said(page, "#problem")
    assert page.locator(".opinion .text").inner_text() == "Early signs are often mild"
    assert "Cut off" in said(page, ".opinion .facts")
    page.get_by_text("What the server said").click()
    assert "the model replica was lost" in said(page, "#problem")
    page.get_by_role("button", name="Try again").click()
    page.locator("#opinions[aria-busy=true]").wait_for()
    page.locator("#problem .problem").wait_for()


def test_one_lost_opinion_leaves_the_other_standing(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_text("Second opinion").click()
    ask(page, "My heart beats at half its pace")
    wait_until_answered(page)
    well, lost = page.locator(".opinion").all()
    assert well.locator(".text").inner_text() == ANSWERS["cardiology"]
    assert "Complete" in well.locator(".facts").inner_text()
    assert "What stands here is not the whole" in lost.locator(".problem").inner_text()
    assert "Cut off" in lost.locator(".facts").inner_text()
    assert page.locator("#problem .problem").count() == 0


def test_a_server_that_has_stopped(open_page: OpenPage, clinic: StandInClinic) -> None:
    page = open_page(refusals=True)
    page.locator("#duty li").first.wait_for()
    clinic.stop()
    ask(page, PARKINSON)
    page.locator("#problem .problem").wait_for()
    assert "The server does not answer" in said(page, "#problem")


def test_a_server_that_comes_back(open_page: OpenPage) -> None:
    page = open_page(refusals=True)
    page.locator("#duty li").first.wait_for()
    page.route("**/ask", lambda route: route.abort("connectionrefused"))
    ask(page, PARKINSON)
    page.locator("#problem .problem").wait_for()
    assert "The server does not answer" in said(page, "#problem")
    page.unroute("**/ask")
    page.get_by_role("button", name="Try again").click()
    wait_until_answered(page)
    assert page.locator(".opinion .text").inner_text() == ANSWER


def test_a_server_that_goes_away_in_mid_stream(open_page: OpenPage, clinic: StandInClinic) -> None:
    page = open_page(refusals=True)
    ask(page, "endless")
    page.locator(".opinion .text.open:not(.waiting)").wait_for()
    clinic.cut_streams()
    page.locator("#problem .problem").wait_for()
    assert "connection broke in the middle" in said(page, "#problem")
    assert page.locator(".opinion .text").inner_text().startswith("Early signs")


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_answer_at_the_server(
    open_page: OpenPage, clinic: StandInClinic, how: str
) -> None:
    page = open_page()
    ask(page, "endless")
    page.locator(".opinion .text.open:not(.waiting)").wait_for()
    assert clinic.backend.num_running == 1
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    page.get_by_text("Stopped by you").first.wait_for()
    clinic.wait_until_idle()
    assert clinic.backend.num_left_open == 1
    assert page.locator("#ask-button").is_visible()
    assert page.locator("#problem .problem").count() == 0
