"""What the router's HTTP side does for a token, and what a start reads."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from deployments.api import streaming
from deployments.api.app import create_api
from deployments.api.comments import commented
from tests.budgets.conftest import Hold
from tests.budgets.counting import Calls, modules_and_files
from tests.deployments.conftest import SmallBackend

SHORT, LONG = 20, 60  # words; each is a token of the echo's answer
STREAMS = [
    ("a chat stream", "/v1/chat/completions", {"model": "base", "stream": True}, "messages"),
    ("/ask", "/ask", {"stream": True}, "question"),
]


class Cost(NamedTuple):
    """Of a request or a token: Python calls, messages to the proxy, and bytes of their bodies."""

    calls: float
    messages: float
    num_bytes: float


def cost_of_a_stream(path: str, body: dict[str, Any]) -> Cost:
    """Return the cost of one whole request, from ASGI's scope to its last message."""

    async def ask() -> Cost:
        api = create_api(SmallBackend())
        given = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        sent: list[Any] = []
        closed = asyncio.Event()

        async def receive() -> Any:
            if given:
                return given.pop()
            await closed.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                closed.set()

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        await api(dict(scope), receive, send)  # what is made once is made now
        status = sent[0]["status"]
        assert status == 200, sent
        given.append({"type": "http.request", "body": json.dumps(body).encode()})
        closed.clear()
        sent.clear()
        with Calls() as calls:
            await api(dict(scope), receive, send)
        num_bytes = sum(len(message.get("body", b"")) for message in sent)
        return Cost(calls.total, len(sent), num_bytes)

    return asyncio.run(ask())


def cost_of_a_token(path: str, body: dict[str, Any], field: str) -> Cost:
    short, long = (
        cost_of_a_stream(path, body | _question(field, " ".join(["word"] * num_words)))
        for num_words in (SHORT, LONG)
    )
    return Cost(*((b - a) / (LONG - SHORT) for a, b in zip(short, long, strict=True)))


def _question(field: str, text: str) -> dict[str, Any]:
    if field == "messages":
        return {"messages": [{"role": "user", "content": text}]}
    return {field: text}


@pytest.mark.parametrize(("name", "path", "body", "field"), STREAMS)
def test_a_token_of_a_stream(
    name: str, path: str, body: dict[str, Any], field: str, hold: Hold
) -> None:
    cost = cost_of_a_token(path, body, field)
    hold(f"router: Python calls for a token of {name}", cost.calls)
    hold(f"router: messages for a token of {name}", cost.messages)
    hold(f"router: bytes for a token of {name}", cost.num_bytes)


def test_one_more_message_a_token_is_noticed(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def chatty(send: Any) -> AsyncIterator[Any]:
        async with commented(send) as send_event:

            async def twice(text: str) -> None:
                await send_event(text)
                await send_event(": there is more\n\n")

            yield twice

    monkeypatch.setattr(streaming, "commented", chatty)
    name, *stream = STREAMS[0]
    cost = cost_of_a_token(*stream)
    with pytest.raises(AssertionError, match=f"messages for a token of {name}: 2, budget 1"):
        hold(f"router: messages for a token of {name}", cost.messages)
    with pytest.raises(AssertionError, match="bytes for a token"):
        hold(f"router: bytes for a token of {name}", cost.num_bytes)


@pytest.mark.slow
def test_what_a_start_imports_and_reads(hold: Hold) -> None:
    starts = {
        "router replica": "import deployments.ingress.deployment",
        "model replica": "import deployments.model.deployment",
        "engine's process": "import deployments.engine_process.main",
        "application builder": "import deployments.app",
    }
    for name, statement in starts.items():
        modules, files = modules_and_files(statement)
        hold(f"{name}: modules at its start", modules)
        hold(f"{name}: files opened at its start", files)
