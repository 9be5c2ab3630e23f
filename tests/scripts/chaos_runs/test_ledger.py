"""The ledger itself: each kind of reply is one outcome, and a limit that is passed is a problem."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from scripts.chaos import check
from scripts.chaos_runs.faults import LIMITS, Limits
from scripts.chaos_runs.ledger import (
    OUTCOMES,
    Sent,
    account,
    body_of,
    compare,
    judge_stream,
    judge_whole,
    repeated_in,
    send,
)
from tests.scripts.chaos_runs.ask_server import answering

ERROR = {"error": {"code": "queue_full", "message": "full"}}
ROUTE = 'data: {"adapter_version": "1"}'
TOKEN = 'data: {"opinion": 0, "text": "w1"}'
LOST = 'data: {"error": {"code": "replica_lost"}}'
CHUNK = 'data: {"choices": [{"delta": {"content": "w1"}}], "polyclinic": {"adapter_version": "1"}}'
DONE = "data: [DONE]"


def sent(mode: str = "ask", **fields: Any) -> Sent:
    return Sent("r-1", mode, "a0", 0, 24, **fields)


@pytest.mark.parametrize(
    ("status", "body", "outcome", "code"),
    [
        (200, {"id": "r-1", "adapter_version": "1", "answer": "w1"}, "answered", None),
        (200, {"id": "r-2", "adapter_version": "1", "answer": "w1"}, "wrong", "another id"),
        (503, ERROR, "refused", "queue_full"),
        (429, ERROR, "refused", "queue_full"),
        (408, ERROR, "refused", "queue_full"),
        (500, ERROR, "failed", "queue_full"),
        (404, ERROR, "failed", "queue_full"),
        (500, {"detail": "x"}, "bare", "no error in our shape"),
        (500, [], "bare", "[]"),
        (502, None, "bare", "Internal Server Error"),
    ],
)
def test_a_whole_reply(status: int, body: Any, outcome: str, code: str | None) -> None:
    row = sent(status=status)
    judge_whole(row, b"Internal Server Error" if body is None else json.dumps(body).encode())
    assert (row.outcome, row.code) == (outcome, code)


@pytest.mark.parametrize(
    ("mode", "lines", "outcome"),
    [
        (
            "ask_stream",
            ["event: route", ROUTE, "event: token", TOKEN, "event: done", ROUTE],
            "answered",
        ),
        ("ask_stream", ["event: route", ROUTE, "event: token", TOKEN], "cut"),
        ("ask_stream", [], "cut"),
        ("ask_stream", ["event: route", ROUTE, "event: error", LOST], "failed"),
        ("ask_stream", ["event: done", ROUTE, "event: done", ROUTE], "doubled"),
        ("ask_stream", ["event: done", ROUTE, "event: token", TOKEN], "doubled"),
        ("chat_stream", [CHUNK, DONE], "answered"),
        ("chat_stream", [CHUNK], "cut"),
        ("chat_stream", [CHUNK, LOST], "failed"),
        ("chat_stream", [CHUNK, DONE, DONE], "doubled"),
        ("chat_stream", [CHUNK, DONE, CHUNK], "doubled"),
        ("chat_stream", [CHUNK, LOST, DONE], "doubled"),
    ],
)
def test_a_stream(mode: str, lines: list[str], outcome: str) -> None:
    row = sent(mode)
    judge_stream(row, lines)
    assert row.outcome == outcome
    if outcome == "answered":
        assert (row.text, row.version) == ("w1", "1")


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.StreamResponse:
        question = (await request.json())["max_tokens"]
        if question == 1:
            await asyncio.sleep(1)  # twice the deadline
        if question == 2:
            assert request.transport is not None
            request.transport.close()
        reply = {"id": request.headers["x-request-id"], "adapter_version": "1", "answer": "w1"}
        return web.json_response(reply)

    async with answering(answer) as url:
        yield url


async def test_each_request_ends_in_one_outcome(url: str) -> None:
    truth = {("a0", "1", 0, 24): "w1", ("a0", "1", 1, 24): "another text"}
    rows = [Sent(f"r-{n}", "ask", "a0", n % 2, tokens) for n, tokens in enumerate((24, 24, 1, 2))]
    rows.append(Sent("r-4", "ask", "a0", 0, 24))
    async with aiohttp.ClientSession() as session:
        for row in rows[:-1]:
            await send(session, url, row, truth, deadline_s=0.5)
        await send(session, "http://127.0.0.1:9", rows[-1], truth, deadline_s=0.5)
    assert [row.outcome for row in rows] == ["answered", "wrong", "lost", "cut", "unreached"]
    ledger = account(rows)
    assert ledger["sent"] == sum(ledger[outcome] for outcome in OUTCOMES) == 5


@pytest.mark.parametrize(
    ("text", "outcome", "has_parted"),
    [
        (" ".join(f"w{n}" for n in range(40)), "answered", False),
        (" ".join(f"w{n}" for n in range(30)) + " w9 w9", "answered", True),
        (" ".join(f"w{n}" for n in range(20)), "wrong", False),
        (" ".join(f"w{n}" for n in range(1, 40)), "wrong", False),
        ("", "wrong", False),
    ],
)
def test_a_text_is_compared_from_its_first_word_on(
    text: str, outcome: str, has_parted: bool
) -> None:
    row = sent(outcome="answered", text=text)
    compare(row, " ".join(f"w{n}" for n in range(40)))
    assert (row.outcome, row.has_parted) == (outcome, has_parted)


def test_a_request_that_was_never_sent_is_lost() -> None:
    assert account([sent()])["lost"] == 1


@pytest.mark.parametrize("mode", ["ask", "ask_stream", "chat", "chat_stream"])
def test_the_bodies_name_who_answers(mode: str) -> None:
    path, body = body_of(sent(mode))
    assert body["stream"] is mode.endswith("stream")
    assert "a0" in (body.get("specialty"), body.get("model"))
    assert path == ("/ask" if mode.startswith("ask") else "/v1/chat/completions")


def test_what_may_never_be_and_what_a_fault_may_cost() -> None:
    fine = account([sent(outcome="answered") for _ in range(99)] + [sent(outcome="cut")])
    assert check("model", fine, Limits(failed=0.01)) == []
    [problem] = check("none", fine, Limits())
    assert problem == "none: 1 of 100 failed, more than 0%"
    for outcome in ("lost", "doubled", "wrong"):
        [problem] = check("proxy", account([sent(outcome=outcome)]), LIMITS["proxy"])
        assert outcome in problem
    assert check("freeze", fine | {"faults": ["failed: not replaced"]}, LIMITS["freeze"]) == [
        "freeze: failed: not replaced"
    ]
    grown = fine | {"held": {"memory_growth": 0.03}}
    assert check("model", grown, Limits(failed=0.01)) == [
        "model: memory grew by 3.0%, more than 2%"
    ]
    refused = account([sent(outcome="refused", status=503)] * 10)
    assert check("overload", refused, LIMITS["overload"]) == ["overload: 10 without_retry_after"]
    [problem] = check("overload", account([sent(outcome="answered")]), LIMITS["overload"])
    assert problem == "overload: 0 refused, so that refusals were not tested"


def test_tenths_are_in_the_order_of_the_start_and_windows_hold_what_began_there() -> None:
    rows = [sent(outcome="answered", started_s=float(n), took_s=n / 100) for n in range(100)]
    rows.reverse()
    rows.append(sent(outcome="lost", started_s=50.5, took_s=60))
    found = account(rows, [(10.0, 12.0), (50.0, 51.0), (99.0, math.inf)])
    assert found["tenths"]["p50_s"][0] == pytest.approx(0.04)
    assert found["tenths"]["p50_s"][-1] == pytest.approx(0.94)
    assert found["during"] == {"sent": 7, "answered": 6, "p50_s": 0.12, "p99_s": 0.51}
    assert found["broken_s"] == [2.0, 1.0]


def test_others_are_those_that_no_router_has_asked_again() -> None:
    rows = [
        Sent(f"r-{n}", "ask", "a0", 0, 24, outcome="answered", started_s=float(n), took_s=n)
        for n in range(10)
    ]
    found = account(rows, [(2.0, 5.0)], {"r-5", "r-9"})
    assert found["repeated"] == 2
    assert found["during"] == {"sent": 4, "answered": 4, "p50_s": 3, "p99_s": 4}
    assert found["others_during"] == {"sent": 3, "answered": 3, "p50_s": 3, "p99_s": 3}


def test_who_was_asked_again_is_in_the_log_of_the_console(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    line = "WARNING -- request {}: its replica cannot answer; asking again\n"
    log.write_text(line.format("before") + line.format("hang-7-ab") + "request x: refused\n")
    assert repeated_in(log, len(line.format("before"))) == {"hang-7-ab"}
