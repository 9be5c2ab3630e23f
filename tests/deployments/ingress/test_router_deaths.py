"""A question that routers die of reaches three of them; those that were with it are answered."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from deployments.ingress.proxy_errors import OwnErrors
from deployments.ingress.quarantine import QUARANTINE_S
from deployments.ingress.router_deaths import OthersFirst, RouterDeaths
from tests.deployments.ingress.test_proxy_errors import EVENT


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def body_of(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    return body


class Routers:
    """Serve's proxy over one router at a time, which ends with all that it has soon after it was
    asked a killer."""

    def __init__(self, *, streams: bool = False) -> None:
        self.num_deaths = 0
        self._streams = streams
        self._died = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await body_of(receive)
        own = self._died
        if self._streams:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": EVENT.encode(), "more_body": True})
        for _ in range(20 if b"killer" in body else 200):
            await asyncio.sleep(0)
            if own.is_set():
                return
        if b"killer" in body:
            self.num_deaths += 1
            own.set()
            self._died = asyncio.Event()
            return
        if self._streams:
            await send({"type": "http.response.body", "body": b"event: done\n\n"})
            return
        await JSONResponse({"fine": True})(scope, receive, send)


def client_of(routers: Any, clock: Clock) -> httpx.AsyncClient:
    app = OwnErrors(routers)
    app._deaths = RouterDeaths(clock)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://clinic")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def code_of(reply: httpx.Response) -> str | None:
    found: str | None = reply.json()["error"]["code"] if reply.status_code != 200 else None
    return found


@pytest.mark.parametrize(
    "path", ["/ask", "/route", "/v1/chat/completions", "/v1/completions", "/v1/responses"]
)
async def test_a_killer_reaches_three_routers_however_often_it_is_asked(
    clock: Clock, path: str
) -> None:
    routers = Routers()
    async with client_of(routers, clock) as client:
        codes = []
        for _ in range(5):
            clock.now += 1
            reply = await client.post(path, content=b"killer")
            codes.append(code_of(reply))
        assert codes == ["router_lost"] * 2 + ["question_quarantined"] * 3
        assert routers.num_deaths == 3
        assert int(reply.headers["retry-after"]) == QUARANTINE_S - 3
        assert code_of(await client.post(path, content=b"another")) is None
        clock.now += QUARANTINE_S
        assert code_of(await client.post(path, content=b"killer")) == "router_lost"


async def test_one_whose_stream_had_begun_is_counted_too(clock: Clock) -> None:
    routers = Routers(streams=True)
    async with client_of(routers, clock) as client:
        replies = [await client.post("/ask", content=b"killer") for _ in range(5)]
    assert routers.num_deaths == 3
    assert ["router_lost" in reply.text for reply in replies] == [True] * 3 + [False] * 2
    assert code_of(replies[-1]) == "question_quarantined"


async def test_others_that_were_with_it_are_answered(clock: Clock) -> None:
    """They were at two deaths as well; asked alone, each of them is cleared."""
    routers = Routers()
    innocent = [b"a rash %d" % number for number in range(20)]
    async with client_of(routers, clock) as client:

        async def ask(body: bytes) -> str | None:
            return code_of(await client.post("/ask", content=body))

        first = await asyncio.gather(*map(ask, [*innocent, b"killer"]))
        assert routers.num_deaths == 2
        assert set(first) == {"router_lost"}
        clock.now += 1
        second = await asyncio.gather(*map(ask, [*innocent, b"killer", *innocent]))
        assert [code for code in second if code is not None] == ["router_lost"], "the killer's own"
        assert routers.num_deaths == 3
        assert await ask(b"killer") == "question_quarantined"
        assert set(await asyncio.gather(*map(ask, innocent))) == {None}


async def test_after_a_minute_suspects_wait_for_nobody_and_are_not_repeated(clock: Clock) -> None:
    routers = Routers()
    async with client_of(routers, clock) as client:
        await client.post("/ask", content=b"killer")
        clock.now += 61
        assert code_of(await client.post("/ask", content=b"killer")) == "router_lost"
        assert routers.num_deaths == 3
        assert code_of(await client.post("/ask", content=b"killer")) == "question_quarantined"
    deaths = RouterDeaths(clock)
    one = deaths.digest("/ask", b"one")
    deaths.saw(one, 2)
    clock.now += 61
    async with deaths.turn(one), deaths.turn(one):
        pass


async def test_the_same_question_of_many_clients_is_one_at_one_death(clock: Clock) -> None:
    routers = Routers()
    async with client_of(routers, clock) as client:

        async def ask(body: bytes) -> str | None:
            return code_of(await client.post("/ask", content=body))

        await asyncio.gather(*map(ask, [b"a rash"] * 30))
        assert set(await asyncio.gather(*map(ask, [b"a rash"] * 30))) == {None}


async def test_nothing_is_repeated_for_a_minute_after_a_repeat_was_lost(clock: Clock) -> None:
    """A client that changes its killer each time costs a router each time, and not two."""
    routers = Routers()
    async with client_of(routers, clock) as client:
        for number in range(4):
            clock.now += 1
            await client.post("/ask", content=b"killer %d" % number)
        assert routers.num_deaths == 2 + 3
        clock.now += 60
        await client.post("/ask", content=b"killer 9")
        assert routers.num_deaths == 2 + 3 + 2


async def test_what_only_reads_is_kept_from_nobody(clock: Clock) -> None:
    class Dying:
        num = 0

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await body_of(receive)
            self.num += 1

    routers = Dying()
    async with client_of(routers, clock) as client:
        for _ in range(6):
            clock.now += 61
            assert code_of(await client.get("/readyz")) == "router_lost"
    assert routers.num == 12


async def test_a_suspect_waits_for_others_so_long(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.ingress.router_deaths.WAIT_S", 0.01)
    deaths = RouterDeaths(clock)
    one, other = (deaths.digest("/ask", body) for body in (b"one", b"other"))
    deaths.saw(one, 2)
    deaths.saw(other, 2)
    async with deaths.turn(one), deaths.turn(None):
        with pytest.raises(OthersFirst):
            async with deaths.turn(other):
                pytest.fail("it is not alone")
    async with deaths.turn(other):
        pass


async def test_a_body_that_never_ends_is_left_to_the_router(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.ingress.proxy_errors._BODY_S", 0.01)
    seen: list[Message] = []

    async def router(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await receive())
        await StreamingResponse(iter([b"{}"]), 408)(scope, receive, send)

    given = [{"type": "http.request", "body": b"half", "more_body": True}]

    async def receive() -> Any:
        return given.pop() if given else await asyncio.sleep(60)

    async def send(message: Message) -> None:
        seen.append(message)

    app = OwnErrors(router)
    app._deaths.saw(app._deaths.digest("/ask", b"x"), 1)
    scope = {"type": "http", "method": "POST", "path": "/ask", "headers": []}
    await asyncio.wait_for(app(scope, receive, send), 5)
    assert seen[0]["body"] == b"half"
    assert seen[1]["status"] == 408


async def test_only_so_many_questions_are_kept(clock: Clock) -> None:
    deaths = RouterDeaths(clock)
    for number in range(5000):
        deaths.saw(deaths.digest("/ask", b"%d" % number), 1)
    assert len(deaths._seen) == 4096
