"""A value that asks for nothing, or changes nothing here, is accepted at every level; one that
would change the answer is refused by its field's name."""

from typing import Any

import httpx
import pytest

from tests.deployments.conftest import SmallBackend, error_of

USER = {"role": "user", "content": "a red rash"}
CHAT = "/v1/chat/completions"


async def test_our_own_reply_can_be_sent_back(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    first = (await client.post(CHAT, json={"messages": [USER]})).json()
    reply = first["choices"][0]["message"]
    again = await client.post(CHAT, json={"messages": [USER, reply, USER]})
    assert again.status_code == 200, again.text
    assert [turn.content for turn in backend.calls[-1].turns] == [
        "a red rash",
        "A RED RASH",
        "a red rash",
    ]


TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {}}}
NOTHING: list[Any] = [None, False, 0, "", [], {}]
FIELDS = [
    ("tool_choice", ["none", "auto"], ["required", {"type": "function"}]),
    ("function_call", ["none", "auto"], [{"name": "f"}]),
    ("parallel_tool_calls", [True], [1, "yes"]),
    ("service_tier", ["auto", "default", "flex", "priority"], ["gold"]),
    ("modalities", [["text"]], [["text", "audio"], ["audio"]]),
    ("reasoning_effort", ["none"], ["high", "low"]),
    ("verbosity", ["medium"], ["high"]),
    ("response_format", [{"type": "text"}], [{"type": "xml"}, "json", {"schema": {}}]),
    ("best_of", [1], [2, 0]),
    ("tools", [], [[{}], {"name": "f"}]),
    ("functions", [], [[{}]]),
    ("logit_bias", [{"50256": 0}, {"1": 0.0, "2": 0}], [{"50256": -100}, {"1": 0, "2": 1}]),
    ("web_search_options", [], [{}, {"search_context_size": "low"}]),
    ("structured_outputs", [{"json": None, "grammar": None}], []),
    ("guided_choice", [], []),
    ("logprobs", [True], []),
    ("top_logprobs", [], []),
    ("presence_penalty", [0.0], [0.5]),
    ("audio", [], [{"voice": "alloy"}]),
    ("prediction", [], [{"type": "content"}]),
    ("suffix", [], ["the end"]),
    ("echo", [], [True]),
]


@pytest.mark.parametrize("choice", [None, "auto", "required", "None", {"type": "none"}])
async def test_tools_that_may_be_called_are_refused(client: httpx.AsyncClient, choice: Any) -> None:
    for path, body in ((CHAT, {"messages": [USER]}), ("/v1/responses", {"input": "a red rash"})):
        reply = await client.post(path, json={**body, "tools": [TOOL], "tool_choice": choice})
        assert reply.status_code == 400, reply.text
        assert error_of(reply)["param"] in ("tools", "tool_choice")


@pytest.mark.parametrize(("name", "more", "refused"), FIELDS)
async def test_fields_that_we_do_not_have(
    client: httpx.AsyncClient, name: str, more: list[Any], refused: list[Any]
) -> None:
    nothing = [value for value in NOTHING if value is None or value not in refused]
    for value in [*nothing, *more]:
        response = await client.post(CHAT, json={"messages": [USER], name: value})
        assert response.status_code == 200, (value, response.text)
    for value in refused:
        response = await client.post(CHAT, json={"messages": [USER], name: value})
        error = error_of(response)
        assert (response.status_code, error["param"]) == (400, name), value
        assert error["code"] == "unsupported_field"


@pytest.mark.parametrize(
    "field",
    [
        {"store": True},
        {"store": False},
        {"metadata": {"ward": "3"}},
        {"metadata": {}},
        {"prompt_cache_key": "k"},
        {"prompt_cache_retention": "24h"},
        {"safety_identifier": "u"},
        {"user": "u"},
        {"model": None},
        {"temperature": None, "top_p": None, "seed": None, "stop": None, "max_tokens": None},
        {"stop": []},
        {"stream": None, "stream_options": None},
        {"stream_options": {}},
        {"stream_options": {"include_usage": False}},
        {"stream_options": {"include_usage": None, "include_obfuscation": None}},
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"tools": [TOOL], "tool_choice": "none"},
        {"tools": [TOOL], "tool_choice": "none", "parallel_tool_calls": False},
        {"functions": [TOOL["function"]], "function_call": "none"},
        {"a_field_of_the_future": None, "max_token": None},
        {"stream": False, "stream_options": {"a_field_of_the_future": None}},
        {"response_format": {"type": "text", "strict": None}},
    ],
)
async def test_hints_and_nulls_change_nothing(
    client: httpx.AsyncClient, backend: SmallBackend, field: dict[str, Any]
) -> None:
    response = await client.post(CHAT, json={"messages": [USER], **field})
    assert response.status_code == 200, response.text
    assert backend.classified == [["a red rash"]], "the router was not asked"
    text = await client.post("/v1/completions", json={"prompt": "a red rash", **field})
    assert text.status_code == 200, text.text


NULLS = {
    name: None
    for name in (
        "name",
        "refusal",
        "audio",
        "annotations",
        "function_call",
        "tool_calls",
        "tool_call_id",
        "reasoning",
        "reasoning_content",
    )
}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": "A RED RASH", **NULLS},
        {"role": "assistant", "content": "A RED RASH", "mood": None},
        {"role": "user", "content": [{"type": "text", "text": "hello", "mood": None}]},
        {"role": "assistant", "content": "A RED RASH", "annotations": [], "tool_calls": []},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": []},
        {"role": "assistant"},
        {"role": "user", "content": [{"type": "text", "text": "hello", "annotations": []}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a", "annotations": [{}]}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}],
        },
    ],
)
async def test_turns_with_nothing_in_their_other_fields(
    client: httpx.AsyncClient, backend: SmallBackend, turn: dict[str, Any]
) -> None:
    response = await client.post(CHAT, json={"messages": [USER, turn, USER]})
    assert response.status_code == 200, response.text
    assert len(backend.calls[0].turns) == 3


@pytest.mark.parametrize(
    ("turn", "param"),
    [
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": None}, "messages.0.content"),
        ({"role": "system", "content": None}, "messages.0.content"),
        ({"role": "user", "content": []}, "messages.0.content"),
        ({**USER, "refusal": "no"}, "messages.0.refusal"),
        ({**USER, "tool_calls": [{"id": "1"}]}, "messages.0.tool_calls"),
        ({**USER, "mood": False}, "messages.0.mood"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "mood": [1]}]},
            "messages.0.content.0.mood",
        ),
    ],
)
async def test_turns_that_ask_for_something_else(
    client: httpx.AsyncClient, turn: dict[str, Any], param: str
) -> None:
    response = await client.post(CHAT, json={"messages": [turn, USER]})
    assert response.status_code == 400
    assert error_of(response)["param"] == param
