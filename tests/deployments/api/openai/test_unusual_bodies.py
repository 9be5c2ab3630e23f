"""What JSON can hold and a reply cannot, and keys and parts that nobody knows: named in a 400."""

import json
from typing import Any

import httpx
import pytest

from tests.deployments.conftest import SmallBackend, error_of

USER = {"role": "user", "content": "a red rash"}
CHAT, TEXT, RESPONSES, ASK = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/ask"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [USER]},
    TEXT: {"prompt": "a red rash"},
    RESPONSES: {"input": "a red rash"},
    ASK: {"question": "a red rash"},
}
HALF = "x\ud83d"


def schema_format(**more: Any) -> dict[str, Any]:
    return {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, **more}}


async def post(client: httpx.AsyncClient, path: str, more: Any) -> httpx.Response:
    """In ASCII, and with NaN and Infinity as Python's json writes them."""
    content = json.dumps({**BODIES[path], **more})
    return await client.post(path, content=content, headers={"content-type": "application/json"})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        (RESPONSES, {"metadata": {"ward": HALF}}, "metadata.ward"),
        (RESPONSES, {"metadata": {HALF: "3"}}, "metadata.x\\ud83d"),
        (RESPONSES, {"user": HALF}, "user"),
        (RESPONSES, {"instructions": HALF}, "instructions"),
        (RESPONSES, {"text": schema_format(description=HALF)}, "text.format.description"),
        (RESPONSES, {"text": schema_format(schema={"title": HALF})}, "text.format.schema.title"),
        (CHAT, {"metadata": {"a": [{"b": HALF}]}}, "metadata.a.0.b"),
        (CHAT, {"stop": ["a", HALF]}, "stop.1"),
        (CHAT, {"user": "\udc00"}, "user"),
        (CHAT, {"messages": [{**USER, "name": HALF}]}, "messages.0.name"),
        (CHAT, {HALF: 1}, "x\\ud83d"),
        (CHAT, {HALF: None}, "x\\ud83d"),
        (TEXT, {"prompt": ["a rash", HALF]}, "prompt.1"),
        (TEXT, {"echo": True, "model": "base", "prompt": HALF}, "prompt"),
        (ASK, {"session_id": HALF}, "session_id"),
    ],
)
async def test_half_a_surrogate_pair(
    client: httpx.AsyncClient, path: str, more: Any, param: str, stream: bool
) -> None:
    """JSON can escape it, UTF-8 has no bytes for it: what says it back would break."""
    reply = await post(client, path, {**more, "stream": stream})
    assert reply.status_code == 400, reply.text
    error = error_of(reply)
    assert (error["code"], error["param"]) == ("invalid_character", param)


@pytest.mark.parametrize("text", ["\U0001f9ec", "d\\ud83d", "\\\\ud83d", "\u202erash", "\ufeff"])
async def test_whole_characters_are_said_back(client: httpx.AsyncClient, text: str) -> None:
    for stream in (False, True):
        reply = await post(client, RESPONSES, {"metadata": {"a": text}, "stream": stream})
        assert reply.status_code == 200, reply.text
        body = reply.text.rpartition("data: ")[2] if stream else reply.text
        response = json.loads(body)["response"] if stream else json.loads(body)
        assert response["metadata"] == {"a": text}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", f"{'9' * 400}.5"])
@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, '{"messages": [{"role": "user", "content": "a"}], "temperature": %s}',
         "temperature"),
        (CHAT, '{"messages": [{"role": "user", "content": "a"}], "metadata": {"a": [%s]}}',
         "metadata.a.0"),
        (RESPONSES, '{"input": "a", "prompt_cache_options": %s}', "prompt_cache_options"),
        (RESPONSES, '{"input": "a", "text": {"format": {"type": "json_schema", "name": "x", '
         '"schema": {"default": %s}}}}', "text.format.schema.default"),
        (ASK, '{"question": "a", "timeout_s": %s}', "timeout_s"),
    ],
)  # fmt: skip
async def test_numbers_that_are_not_finite(
    client: httpx.AsyncClient, path: str, body: str, param: str, number: str
) -> None:
    """A stream would say them back as they came, which no other parser of JSON reads."""
    headers = {"content-type": "application/json"}
    error = error_of(await client.post(path, content=body % number, headers=headers))
    assert (error["code"], error["param"]) == ("invalid_value", param)


async def test_numbers_of_thousands_of_digits(client: httpx.AsyncClient) -> None:
    body = '{"question": "a rash", "max_tokens": %s}'
    headers = {"content-type": "application/json"}
    for digits, part in ((4000, "above this server's limit"), (5000, "more than 4300 digits")):
        reply = await client.post("/ask", content=body % ("9" * digits), headers=headers)
        assert (reply.status_code, len(reply.content) < 400) == (400, True)
        assert part in error_of(reply)["message"]
        assert "sys." not in reply.text
    for more in ({"min_tokens": 10**4000}, {"max_tokens": 10**4000, "max_completion_tokens": 1}):
        reply = await post(client, CHAT, more)
        assert (reply.status_code, len(reply.content) < 400) == (400, True)


@pytest.mark.parametrize("key", ["maxTokens", "Messages", "top-k", "a b", "é", "", "str", "Text"])
async def test_an_unknown_key_is_named_however_it_is_written(
    client: httpx.AsyncClient, key: str
) -> None:
    cases = [
        (CHAT, {key: 1}, key),
        (TEXT, {key: 1}, key),
        (RESPONSES, {key: 1}, key),
        (ASK, {key: 1}, key),
        (CHAT, {"stream_options": {key: 1}, "stream": True}, f"stream_options.{key}"),
        (CHAT, {"messages": [{**USER, key: 1}]}, f"messages.0.{key}"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", key: 1}]}]},
         f"messages.0.content.0.{key}"),
        (CHAT, {"response_format": {"type": "json_object", key: 1}}, f"response_format.{key}"),
        (RESPONSES, {"text": {"format": {"type": "text", key: 1}}}, f"text.format.{key}"),
        (RESPONSES, {"input": [{**USER, key: 1}]}, f"input.0.{key}"),
    ]  # fmt: skip
    for path, more, param in cases:
        error = error_of(await post(client, path, more))
        assert (error["code"], error["param"] or "") == ("unknown_field", param), path
        assert ascii(param) in error["message"] or not key


async def test_a_long_key_is_shortened(client: httpx.AsyncClient) -> None:
    reply = await post(client, CHAT, {"x" * 10_000: 1})
    assert len(reply.content) < 1000
    assert error_of(reply)["param"] == "x" * 57 + "..."


PARTS: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
    {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
    {"type": "file", "file": {"file_id": "f"}},
    {"type": "video_url", "video_url": {"url": "x"}},
    {"type": "tool_result", "content": "x"},
    {"type": "input_image", "image_url": "x", "detail": "low"},
    {"type": "Text", "text": "a"},
]


@pytest.mark.parametrize("part", PARTS)
async def test_a_part_that_is_no_text_is_named_and_nothing_else(
    client: httpx.AsyncClient, part: dict[str, Any]
) -> None:
    content = [{"type": "text", "text": "a rash"}, part]
    for path, field in ((CHAT, "messages"), (RESPONSES, "input")):
        error = error_of(await post(client, path, {field: [{"role": "user", "content": content}]}))
        assert error["param"] == f"{field}.0.content.1.type"
        assert error["code"] == "unsupported_field"
        assert repr(part["type"]) in error["message"]
        assert "missing" not in error["message"]


async def test_an_item_that_is_no_message_is_named(client: httpx.AsyncClient) -> None:
    item = {"type": "function_call_output", "call_id": "c", "output": "x"}
    error = error_of(await post(client, RESPONSES, {"input": [item]}))
    assert error["param"] == "input.0"
    assert "'function_call_output'" in error["message"]


@pytest.mark.parametrize(
    ("stop", "param"),
    [(5, "stop"), (["a"] * 5, "stop"), ([None], "stop.0"), (["a", ["b"]], "stop.1"), ({}, "stop")],
)
async def test_a_bad_stop_is_refused_for_one_reason(
    client: httpx.AsyncClient, backend: SmallBackend, stop: Any, param: str
) -> None:
    error = error_of(await post(client, CHAT, {"stop": stop}))
    assert error["param"] == param
    assert ";" not in error["message"]
    assert not backend.calls


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-46, 1e-39, 9e-6, 0, -0.0, None])
async def test_a_temperature_too_small_to_draw_with_is_greedy(
    client: httpx.AsyncClient, backend: SmallBackend, temperature: float | None
) -> None:
    for path in (CHAT, TEXT, RESPONSES):
        reply = await post(client, path, {"temperature": temperature})
        assert reply.status_code == 200, reply.text
        assert backend.calls[-1].sampling.is_greedy
        await post(client, path, {"temperature": 1e-5})
        assert backend.calls[-1].sampling.temperature == 1e-5


@pytest.mark.parametrize("value", [1, None, ["a"], {"a": "b"}, True])
async def test_metadata_that_is_said_back_holds_texts(
    client: httpx.AsyncClient, value: Any
) -> None:
    """OpenAI's client reads a response's metadata as texts; a chat's goes nowhere."""
    error = error_of(await post(client, RESPONSES, {"metadata": {"a": value}}))
    assert error["param"] == "metadata.a"
    assert (await post(client, CHAT, {"metadata": {"a": value}})).status_code == 200
