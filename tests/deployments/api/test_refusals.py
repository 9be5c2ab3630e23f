"""Every bad input: a clear 4xx that names field, value, limit and choices."""

import functools
import gzip
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import pytest

from deployments.engine.request import ErrorInfo
from tests.deployments.conftest import SmallBackend, error_of

TURN = {"role": "user", "content": "a rash"}

ASK_REFUSALS = [
    ({"question": ""}, 400, "question", "empty"),
    ({"question": " \n\t "}, 400, "question", "empty"),
    ({"question": 7}, 400, "question", "valid string (got 7)"),
    ({"question": None}, 400, "question", "valid string (got None)"),
    ({"question": ["a"]}, 400, "question", "got a JSON array"),
    ({}, 400, "question", "required, and missing"),
    ([], 400, None, "the body is a JSON array"),
    ("rash", 400, None, "the body is a JSON string"),
    ({"question": "x" * 100_000}, 400, "question", "100000 characters; at most 8000"),
    ({"question": "rash", "qestion": 1}, 400, "qestion", "did you mean 'question'?"),
    ({"question": "rash", "max_tokens": -1}, 400, "max_tokens", "greater than or equal to 1"),
    ({"question": "rash", "max_tokens": 0}, 400, "max_tokens", "(got 0)"),
    ({"question": "rash", "max_tokens": 10**9}, 400, "max_tokens", "limit of 64"),
    ({"question": "rash", "max_tokens": 3.5}, 400, "max_tokens", "valid integer (got 3.5)"),
    ({"question": "rash", "max_tokens": True}, 400, "max_tokens", "got True"),
    ({"question": "rash", "max_tokens": "9"}, 400, "max_tokens", "valid integer (got '9')"),
    ({"question": "rash", "specialty": "dermatolgy"}, 404, "specialty", "mean 'dermatology'?"),
    ({"question": "rash", "specialty": "x" * 9999}, 404, "specialty", "cardiology, dermatology"),
    ({"question": "\N{FACE WITH THERMOMETER}" * 3}, 400, "question", "no letters at all"),
    ({"question": "لدي طفح جلدي"}, 400, "question", "found ARABIC"),
    ({"question": "皮疹"}, 400, "question", "found CJK"),
    ({"question": "12345 ?!"}, 400, "question", "no letters at all"),
    ({"question": "rash\x00"}, 400, "question", "U+0000 at position 4"),
    ({"question": "ra\x1b[31msh"}, 400, "question", "U+001B at position 2"),
    ({"question": "rash \ud800"}, 400, "question", "U+D800 at position 5"),
]


@pytest.mark.parametrize(("body", "status", "param", "words"), ASK_REFUSALS)
async def test_bad_questions(
    client: httpx.AsyncClient,
    backend: SmallBackend,
    body: Any,
    status: int,
    param: str | None,
    words: str,
) -> None:
    content = json.dumps(body)
    headers = {"content-type": "application/json"}
    response = await client.post("/ask", content=content, headers=headers)
    assert response.status_code == status
    error = error_of(response)
    assert error["param"] == param
    assert words in error["message"]
    assert backend.calls == []
    assert len(error["message"]) < 500


CHAT_REFUSALS = [
    ({"model": "gpt-4"}, 404, "model", "known: auto, base, derm-1"),
    ({"temperature": float("nan")}, 400, "temperature", "finite number (got nan)"),
    ({"temperature": -0.1}, 400, "temperature", "greater than or equal to 0"),
    ({"temperature": 1e9}, 400, "temperature", "less than or equal to 2"),
    ({"top_p": 0}, 400, "top_p", "greater than 0"),
    ({"n": 9}, 400, "n", "less than or equal to 8 (got 9)"),
    ({"n": True}, 400, "n", "valid integer (got True)"),
    ({"n": 0}, 400, "n", "greater than or equal to 1 (got 0)"),
    ({"presence_penalty": 0.5}, 400, "presence_penalty", "not supported"),
    ({"top_k": -2}, 400, "top_k", "greater than or equal to -1"),
    ({"repetition_penalty": 0}, 400, "repetition_penalty", "greater than 0"),
    ({"min_tokens": 9, "max_tokens": 8}, 400, "min_tokens", "longest answer of 8 tokens"),
    ({"logprobs": 3}, 400, "logprobs", "valid boolean"),
    ({"top_logprobs": 2}, 400, "top_logprobs", "only with logprobs: true"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "less than or equal to 20"),
    ({"logprobs": True, "grounding": "quote"}, 400, "logprobs", "leave one of them out"),
    ({"echo": True}, 400, "echo", "not supported"),
    ({"tools": [{}]}, 400, "tools", "not supported"),
    ({"response_format": {"type": "xml"}}, 400, "response_format", "none of text, json_object"),
    ({"max_token": 5}, 400, "max_token", "did you mean 'max_tokens'?"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, 400, "max_completion_tokens", "differ"),
    ({"stop": ""}, 400, "stop", "empty string"),
    ({"stop": ["a"] * 5}, 400, "stop", "at most 4"),
    ({"stream": "yes"}, 400, "stream", "valid boolean"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream: true"),
    ({"messages": []}, 400, "messages", "at least 1"),
    ({"messages": "hello"}, 400, "messages", "valid list"),
    ({"messages": [{"role": "user"}]}, 400, "messages.0.content", "required"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role", "'user'"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages", "must be the user"),
    ({"messages": [{"role": "user", "content": " "}]}, 400, "messages.0.content", "empty"),
    ({"messages": [{"role": "system", "content": "b"}]}, 400, "messages", "must be the user"),
    (
        {"messages": [{"role": "user", "content": "a" * 5000}] * 2},
        400,
        "messages",
        "10000 characters; at most 8000",
    ),
]


@pytest.mark.parametrize(("change", "status", "param", "words"), CHAT_REFUSALS)
async def test_bad_chats(
    client: httpx.AsyncClient, change: dict[str, Any], status: int, param: str, words: str
) -> None:
    body = {"messages": [{"role": "user", "content": "a rash"}], **change}
    headers = {"content-type": "application/json"}
    response = await client.post("/v1/chat/completions", content=json.dumps(body), headers=headers)
    assert response.status_code == status
    error = error_of(response)
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    ("content", "content_type", "status", "words"),
    [
        (b"{not json", "application/json", 400, "not JSON"),
        (b"", "application/json", 400, "not JSON"),
        (b'{"question": "caf\xe9"}', "application/json", 400, "not UTF-8 (byte"),
        (b"[" * 100_000, "application/json", 400, "nested too deeply"),
        (b'{"question": "a", "question": "b"}', "application/json", 400, "repeats the key"),
        (b'{"question": "' + b"x" * 2**20 + b'"}', "application/json", 413, "at most 262144"),
        (b"question=rash", "application/x-www-form-urlencoded", 415, "send application/json"),
        (b'{"question": "a rash"}', "", 415, "send application/json"),
    ],
)
async def test_bad_bodies(
    client: httpx.AsyncClient, content: bytes, content_type: str, status: int, words: str
) -> None:
    response = await client.post("/ask", content=content, headers={"content-type": content_type})
    assert response.status_code == status
    assert words in error_of(response)["message"]


async def test_a_byte_order_mark_is_read_over(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    content = b'\xef\xbb\xbf{"question": "a red rash"}'
    assert (await client.post("/ask", content=content, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("encoding", "status"),
    [("br", 415), ("deflate", 415), ("zstd", 415), ("gzip, gzip", 415), ("identity", 200)],
)
async def test_another_compression_than_gzip_is_refused_by_its_name(
    client: httpx.AsyncClient, encoding: str, status: int
) -> None:
    content = b'{"question": "a red rash"}'
    headers = {"content-type": "application/json", "content-encoding": encoding}
    response = await client.post("/ask", content=content, headers=headers)
    assert response.status_code == status
    if status == 415:
        error = error_of(response)
        assert (error["param"], error["code"]) == ("content-encoding", "unsupported_encoding")
        assert encoding in error["message"]
        assert response.headers["accept-encoding"] == "gzip"


# Without the time, so that every worker of pytest-xdist has the same names of tests.
compressed = functools.partial(gzip.compress, mtime=0)
GZIPPED = compressed(b'{"question": "a red rash"}')


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (GZIPPED, 200, ""),
        (compressed(b'{"question":') + compressed(b' "a red rash"}'), 200, ""),
        (compressed(b'\xef\xbb\xbf{"question": "a red rash"}'), 200, ""),
        (b'{"question": "a red rash"}', 400, "is not gzip"),
        (GZIPPED[:-9], 400, "is cut off"),
        (GZIPPED + b"more", 400, "is not gzip"),
        (b"", 400, "not JSON"),
        (compressed(b"not json"), 400, "not JSON"),
        (lambda: compressed(b" " * 2**27), 413, "at most 262144"),
        (compressed(b'{"question": "' + b"x" * 2**20 + b'"}'), 413, "at most 262144"),
        (compressed(b" " * 2**17) * 3, 413, "at most 262144"),
    ],
)
async def test_a_gzip_body_is_unpacked_within_the_limit(
    client: httpx.AsyncClient, content: bytes | Callable[[], bytes], status: int, words: str
) -> None:
    content = content() if callable(content) else content
    for encoding in ("gzip", "X-GZIP"):
        headers = {"content-type": "application/json", "content-encoding": encoding}
        response = await client.post("/ask", content=content, headers=headers)
        assert response.status_code == status
        if words:
            assert words in error_of(response)["message"]


async def test_a_body_without_a_length_is_bounded_too(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncGenerator[bytes, None]:
        for _ in range(10_000):
            yield b"x" * 1024

    headers = {"content-type": "application/json"}
    response = await client.post("/ask", content=endless(), headers=headers)
    assert response.status_code == 413


async def test_wrong_method_and_path(client: httpx.AsyncClient) -> None:
    response = await client.get("/ask")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert "use POST" in error_of(response)["message"]
    response = await client.post("/aks", json={})
    assert response.status_code == 404
    assert "/ask" in error_of(response)["message"]


async def test_questions_are_counted_and_each_is_named(client: httpx.AsyncClient) -> None:
    response = await client.post("/route", json={"questions": ["a"] * 257})
    assert "257 given; at most 256" in error_of(response)["message"]
    response = await client.post("/route", json={"questions": ["a rash", ""]})
    assert error_of(response)["param"] == "questions.1"
    response = await client.post("/route", json={"questions": []})
    assert "at least 1" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/ask", {"question": "a rash"}),
        ("/ask", {"question": "a rash", "stream": True}),
        ("/v1/chat/completions", {"model": "auto", "messages": [TURN]}),
        ("/v1/chat/completions", {"model": "auto", "messages": [TURN], "stream": True}),
        ("/v1/responses", {"model": "auto", "input": "a rash"}),
    ],
)
async def test_without_room_nothing_is_classified(
    client: httpx.AsyncClient, backend: SmallBackend, path: str, body: dict[str, Any]
) -> None:
    """Overload costs the router as little as it can: the refusal comes first."""
    backend.refuses = ErrorInfo("queue_full", "full", retry_after_s=3)
    reply = await client.post(path, json=body)
    assert (reply.status_code, error_of(reply)["code"]) == (503, "queue_full")
    assert reply.headers["retry-after"] == "3"
    assert backend.classified == backend.calls == []
