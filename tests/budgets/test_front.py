"""What the router's HTTP side does for a token, and what a start reads."""

import asyncio
import json
from typing import Any

import pytest

from deployments.api.app import create_api
from tests.budgets.conftest import Hold
from tests.budgets.counting import Calls, modules_and_files
from tests.deployments.conftest import SmallBackend

SHORT, LONG = 20, 60  # words; each is a token of the echo's answer


def calls_of_a_stream(path: str, body: dict[str, Any]) -> int:
    """Return the Python calls of one whole request, from ASGI's scope to its last message."""

    async def ask() -> tuple[int, int]:
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
        with Calls() as calls:
            await api(dict(scope), receive, send)
        return calls.total, len(sent)

    return asyncio.run(ask())[0]


def calls_of_a_token(path: str, body: dict[str, Any], field: str) -> float:
    short, long = (
        calls_of_a_stream(path, body | _question(field, " ".join(["word"] * num_words)))
        for num_words in (SHORT, LONG)
    )
    return (long - short) / (LONG - SHORT)


def _question(field: str, text: str) -> dict[str, Any]:
    if field == "messages":
        return {"messages": [{"role": "user", "content": text}]}
    return {field: text}


def test_a_token_of_a_chat_stream(hold: Hold) -> None:
    body = {"model": "base", "stream": True}
    calls = calls_of_a_token("/v1/chat/completions", body, "messages")
    hold("router: Python calls for a token of a chat stream", calls)


def test_a_token_of_an_ask_stream(hold: Hold) -> None:
    body = {"stream": True}
    hold("router: Python calls for a token of /ask", calls_of_a_token("/ask", body, "question"))


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
