"""Keys in the browser, and the operator's view."""

import re
import time
from typing import TYPE_CHECKING

from deployments.messages import Outcome
from tests.page.conftest import OpenPage, ask, wait_until_answered
from tests.page.stand_in_backend import ANSWER, held
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
    assert rows(page, "Model replicas") == [
        [*"k3v9qa 7 3 0 13 haiku fast".split(), "cuda:0, bfloat16"],
        ["p7m2zx", "6, behind", *"3 0 12 haiku fast".split(), "cuda:0, bfloat16"],
    ]
    assert rows(page, "Router replicas")[0][:2] == ["a1b2c3", "7"]
    assert rows(page, "Router replicas")[1][:2] == ["e5f6g7", "no answer"]
    assert rows(page, "Traffic") == [
        ["Neurology", "neurology", "stop", "3", "75%"],
        ["None named", "base model", "queue_full", "1", "25%"],
    ]
    bins = page.locator(".histogram .bin .visually-hidden").all_inner_texts()
    assert (bins[0], bins[9]) == ("0-10 percent: 1 requests", "90-100 percent: 2 requests")
    assert len(bins) == 10


def adapters_of(page: "Page") -> dict[str, list[list[str]]]:
    """Adapter -> for each model replica, the lines of its cell."""
    found = rows(page, "Adapters on each model replica")
    return {row[0]: [cell.split("\n") for cell in row[2:]] for row in found}


def test_replicas_that_disagree_are_seen_at_a_glance(
    open_page: OpenPage, clinic: StandInClinic
) -> None:
    page = open_page("#operator")
    page.locator("#report table").first.wait_for()
    assert page.locator(".verdict.differ").inner_text() == (
        "Not every replica holds what the catalogue says (revision 7): "
        "p7m2zx (at revision 6, other versions)."
    )
    held = adapters_of(page)
    assert len(held) == 12
    in_force = ["v2, in force, on the device", "answers: 0, loaded in 12 ms"]
    assert held["oncology"] == [in_force, in_force]
    assert held["neurology"] == [
        [*in_force, "v1, leaving, answers still running: 2"],
        in_force,
    ]
    pinned = ["v2, in force, on the device, pinned", "answers: 1,204, loaded in 12 ms"]
    assert held["cardiology\nreplicas differ"] == [pinned, in_force]
    trial = ["v3, on trial for 10%, in memory", "answers: 0, loaded in 12 ms"]
    assert held["dermatology\nreplicas differ"] == [
        [*in_force, *trial],
        [*in_force, "v3, missing"],
    ]
    assert held["rheumatology_orthopedics\nreplicas differ"] == [
        in_force,
        ["v1, in force, on disk, outdated", "answers: 0", "v2, missing"],
    ]
    clinic.backend.models[1] = {**clinic.backend.models[0], "replica": "p7m2zx02"}
    page.locator(".verdict:not(.differ)").wait_for(timeout=5000)
    assert page.locator(".verdict").inner_text() == (
        "Every replica holds what the catalogue says (revision 7)."
    )
    assert held.keys() & adapters_of(page).keys() >= {"oncology", "neurology"}
    assert not any("differ" in name for name in adapters_of(page))


def test_a_replica_without_an_answer_is_not_taken_to_agree(
    open_page: OpenPage, clinic: StandInClinic
) -> None:
    silent = {"replica": "p7m2zx02", "problem": "no_answer", "message": "no answer within 2 s"}
    clinic.backend.models[1] = silent
    page = open_page("#operator")
    page.locator("#report table").first.wait_for()
    assert page.locator(".verdict.differ").inner_text().endswith(": p7m2zx (no answer).")
    assert adapters_of(page)["cardiology"][1] == ["no answer"]
    assert rows(page, "Model replicas")[1][:2] == ["p7m2zx", "no answer"]


def test_what_a_replica_could_not_load_is_said(open_page: OpenPage, clinic: StandInClinic) -> None:
    first, second = clinic.backend.models
    failed = {"tier": "disk", "load_s": None, "error": "rank 99 is above 64"}
    first["adapters"] = [held("cardiology", "4", **failed)]
    first["adapters_leaving"] = []
    second |= {"adapters": [], "adapters_error": "the catalogue cannot be read"}
    page = open_page("#operator")
    page.locator("#report table").first.wait_for()
    assert adapters_of(page) == {
        "cardiology\nreplicas differ": [
            ["v4, in force, on disk, could not load", "answers: 0"],
            ["v4, missing"],
        ]
    }
    assert page.locator("#report .errors li").all_inner_texts() == [
        "k3v9qa, cardiology 4: rank 99 is above 64",
        "p7m2zx: the catalogue cannot be read",
    ]
    assert "k3v9qa (could not load)" in page.locator(".verdict").inner_text()


def test_the_operators_words_in_french(open_page: OpenPage, clinic: StandInClinic) -> None:
    page = open_page("#operator", locale="fr-FR")
    page.locator("#report table").first.wait_for()
    assert "p7m2zx (à la révision 6, autres versions)" in page.locator(".verdict").inner_text()
    row = page.locator("tr").filter(has_text="dermatology")
    assert "v3, à l’essai pour 10\u202f%, en mémoire" in row.inner_text().replace("\xa0", "\u202f")
    assert "v3, manquante" in row.inner_text()


def test_it_is_live_and_can_be_paused(open_page: OpenPage, clinic: StandInClinic) -> None:
    page = open_page("#operator")
    requests = page.locator(".tile dd").first
    requests.wait_for()
    assert requests.inner_text().startswith("0")
    clinic.backend.record(Outcome("neurology", "neurology", "stop", 0.9))
    page.locator(".tile dd").first.filter(has_text=re.compile("^1in")).wait_for(timeout=4000)
    page.get_by_role("button", name="Pause").click()
    assert page.locator("#live-state").inner_text() == "Paused"
    clinic.backend.record(Outcome("neurology", "neurology", "stop", 0.9))
    time.sleep(2.5)
    assert requests.inner_text().startswith("1")
    page.get_by_role("button", name="Resume").click()
    page.locator(".tile dd").first.filter(has_text=re.compile("^2in")).wait_for(timeout=4000)


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
