"""Keys in the browser, and the operator's view."""

import time
from typing import TYPE_CHECKING

from deployments.calls import Outcome
from tests.page.conftest import OpenPage, ask, wait_until_answered
from tests.page.stand_in_backend import ANSWER
from tests.page.stand_in_clinic import StandInClinic

if TYPE_CHECKING:
    from playwright.sync_api import Page

QUESTION = "What are the first signs of Parkinson's disease?"


def rows(page: "Page", heading: str) -> list[list[str]]:
    section = page.locator("#report section").filter(has=page.get_by_role("heading", name=heading))
    return [row.locator("th, td").all_inner_texts() for row in section.locator("tbody tr").all()]


def test_a_server_that_wants_a_key(open_page: OpenPage, clinic: StandInClinic) -> None:
    clinic.keys.key = "right"
    page = open_page(refusals=True)
    ask(page, QUESTION)
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Key").fill("wrong")
    assert "asks for a key" in page.locator("#problem").inner_text()
    dialog.get_by_role("button", name="Use it").click()
    page.get_by_text("not known here, or was revoked").wait_for()
    dialog.get_by_label("Key").fill("right")
    page.keyboard.press("Enter")
    wait_until_answered(page)
    assert page.locator(".opinion .text").inner_text() == ANSWER
    assert page.locator("#problem .problem").count() == 0


def test_a_key_lives_in_the_tab_and_can_be_forgotten(
    open_page: OpenPage, clinic: StandInClinic
) -> None:
    clinic.keys.key = "right"
    page = open_page(refusals=True)
    page.get_by_role("button", name="API key").click()
    page.get_by_role("dialog").get_by_label("Key").fill("right")
    page.get_by_role("button", name="Use it").click()
    assert page.evaluate("Object.values(sessionStorage)") == ["right"]
    assert "right" not in page.evaluate("Object.values(localStorage)")
    page.reload()
    ask(page, QUESTION)
    wait_until_answered(page)
    assert page.locator(".who-name").inner_text() == "Neurology"
    page.get_by_role("button", name="API key").click()
    page.get_by_role("button", name="Forget it").click()
    assert page.evaluate("Object.values(sessionStorage)") == []
    ask(page, QUESTION)
    page.get_by_role("dialog").wait_for()


def test_cancelling_the_key_leaves_a_way_back(open_page: OpenPage, clinic: StandInClinic) -> None:
    clinic.keys.key = "right"
    page = open_page(refusals=True)
    ask(page, QUESTION)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Enter a key").click()
    page.get_by_role("dialog").get_by_label("Key").fill("right")
    page.keyboard.press("Enter")
    wait_until_answered(page)
    assert page.locator(".who-name").inner_text() == "Neurology"


def test_the_operator_gives_the_admin_key(open_page: OpenPage, clinic: StandInClinic) -> None:
    clinic.keys.admin_key = "boss"
    page = open_page("#operator", refusals=True)
    page.get_by_label("Admin key").fill("wrong")
    assert page.locator("#operator-problem .problem").count() == 0, "nothing was wrong so far"
    page.get_by_role("button", name="Open").click()
    page.get_by_text("not known here, or was revoked").wait_for()
    assert page.locator("#report").is_hidden()
    page.get_by_label("Admin key").fill("boss")
    page.keyboard.press("Enter")
    page.locator("#report table").first.wait_for()
    assert page.locator("#operator-problem .problem").count() == 0
    assert page.get_by_label("Admin key").is_hidden()
    page.get_by_role("button", name="Forget the key").click()
    page.get_by_label("Admin key").wait_for()
    assert page.locator("#report").is_hidden()


def test_the_report_names_every_replica(open_page: OpenPage, clinic: StandInClinic) -> None:
    for confidence in (0.05, 0.97, 1.0):
        clinic.backend.record(Outcome("neurology", "neurology", "stop", confidence))
    clinic.backend.record(Outcome(None, None, "queue_full", None))
    page = open_page("#operator")
    page.locator("#report table").first.wait_for()
    held = {row[0]: row[1:] for row in rows(page, "Adapters on each model replica")}
    assert len(held) == 12
    active = "v2, active, on the device"
    assert held["cardiology"] == ["Cardiology", active, active]
    assert held["dermatology"] == ["Dermatology", active, "v3, canary, in memory"]
    assert held["rheumatology_orthopedics"][1:] == [active, "not held"]
    assert rows(page, "Model replicas")[0] == "k3v9qa 3 0 12 haiku fast".split() + [
        "cuda:0, bfloat16"
    ]
    assert rows(page, "Router replicas")[1][:2] == ["e5f6g7", "no answer"]
    assert rows(page, "Traffic") == [
        ["Neurology", "neurology", "stop", "3", "75%"],
        ["None named", "base model", "queue_full", "1", "25%"],
    ]
    bins = page.locator(".histogram .bin .visually-hidden").all_inner_texts()
    assert (bins[0], bins[9]) == ("0-10 percent: 1 requests", "90-100 percent: 2 requests")
    assert len(bins) == 10


def test_what_a_replica_could_not_load_is_said(open_page: OpenPage, clinic: StandInClinic) -> None:
    """The shape of a live catalogue: no specialty beside an adapter, its error instead."""
    first, second = clinic.backend.models
    entry = {"name": "cardiology", "version": "4", "tier": "disk", "error": "rank 99 is above 64"}
    first["adapters"] = [entry]
    second |= {"adapters": [], "adapters_error": "the catalogue cannot be read"}
    page = open_page("#operator")
    page.locator("#report table").first.wait_for()
    assert rows(page, "Adapters on each model replica") == [
        ["cardiology", "v4, on disk", "not held"]
    ]
    assert page.locator("#report .errors li").all_inner_texts() == [
        "k3v9qa, cardiology: rank 99 is above 64",
        "p7m2zx: the catalogue cannot be read",
    ]


def test_it_is_live_and_can_be_paused(open_page: OpenPage, clinic: StandInClinic) -> None:
    page = open_page("#operator")
    requests = page.locator(".tile dd").first
    requests.wait_for()
    assert requests.inner_text().startswith("0")
    clinic.backend.record(Outcome("neurology", "neurology", "stop", 0.9))
    page.locator(".tile dd").first.filter(has_text="1").wait_for(timeout=4000)
    page.get_by_role("button", name="Pause").click()
    assert page.locator("#live-state").inner_text() == "Paused"
    clinic.backend.record(Outcome("neurology", "neurology", "stop", 0.9))
    time.sleep(2.5)
    assert requests.inner_text().startswith("1")
    page.get_by_role("button", name="Resume").click()
    page.locator(".tile dd").first.filter(has_text="2").wait_for(timeout=4000)


def test_it_asks_only_while_it_is_seen(open_page: OpenPage) -> None:
    page = open_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_role("link", name="Operator", exact=True).click()
    page.locator("#report table").first.wait_for()
    page.get_by_role("link", name="Ask", exact=True).click()
    page.locator("#ask-view").wait_for()
    num = len([url for url in asked if "v1/operator" in url])
    assert num >= 1
    time.sleep(2.5)
    assert len([url for url in asked if "v1/operator" in url]) == num


def test_a_server_that_stops_answering_is_said(open_page: OpenPage) -> None:
    page = open_page("#operator", refusals=True)
    page.locator("#report table").first.wait_for()
    page.route("**/v1/operator", lambda route: route.abort("connectionrefused"))
    page.locator("#operator-problem .problem").wait_for()
    assert "The server does not answer" in page.locator("#operator-problem").inner_text()
    assert page.locator("#live-state").inner_text() == "Not up to date"
    assert page.locator("#report").is_visible()
    page.unroute("**/v1/operator")
    page.locator("#live-state[data-state=live]").wait_for()
    assert page.locator("#operator-problem .problem").count() == 0
