"""Who asks in a chaos run: a crowd is more than is let in, whatever the machine can do."""

import asyncio
import random
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from deployments.settings import parse_settings
from scripts import chaos
from scripts.chaos_runs.clinic import num_at_once, write_clinic
from scripts.chaos_runs.faults import LIMITS
from scripts.chaos_runs.ledger import Truth, account
from tests.scripts.chaos_runs.ask_server import answering

LET_IN = 4
TRUTH: Truth = {("a0", "1", 0, 24): "w1"}


async def test_a_crowd_is_refused_however_fast_the_server_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chaos, "MODES", ("ask",))
    monkeypatch.setattr(chaos, "_ASK_AGAIN_S", 0.01)
    num_inside = most = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal num_inside, most
        if num_inside == LET_IN:
            full = {"error": {"code": "queue_full", "message": "full"}}
            return web.json_response(full, status=503, headers={"retry-after": "2"})
        num_inside += 1
        most = max(most, num_inside)
        await asyncio.sleep(0.005)
        num_inside -= 1
        reply = {"id": request.headers["x-request-id"], "adapter_version": "1", "answer": "w1"}
        return web.json_response(reply)

    async with answering(answer) as url, aiohttp.ClientSession() as session:
        rows = await chaos._crowd(
            session, url, "overload", TRUTH, random.Random(0), num=6, seconds=0.3
        )
    found = account(rows)
    assert most == LET_IN
    assert found["answered"] > LET_IN
    assert found["answered"] + found["refused"] == found["sent"] == len({row.id for row in rows})
    assert chaos.check("overload", found, LIMITS["overload"]) == []


@pytest.mark.parametrize("step_s", [None, 0.004])
def test_what_is_let_in_at_once_is_what_the_clinics_settings_say(
    tmp_path: Path, step_s: float | None
) -> None:
    application = write_clinic(tmp_path, replicas=2, routers=3, step_s=step_s)
    args = {k: v for k, v in application["args"].items() if k not in ("step_s", "tells")}
    engine = parse_settings(args).engine
    let_in = num_at_once(replicas=2, routers=3, is_stand_in=step_s is not None)
    assert let_in == 3 * (2 * 2 * engine.max_rows + engine.max_waiting)
