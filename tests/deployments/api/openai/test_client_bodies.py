"""What the clients send that people use: bodies recorded from them, and every field they know.

client_bodies.json holds what openai 2.54 and 3.54 (Python), openai 7.59 (npm), langchain-openai
1.7, litellm 1.110, llama-index-llms-openai-like 0.8 and instructor 1.17 sent by default and with
common options, their own replies sent back among them.
"""

import json
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartRefusalParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat.completion_create_params import CompletionCreateParams as ChatParams
from openai.types.completion_create_params import CompletionCreateParams as TextParams

from tests.deployments.conftest import SmallBackend, error_of

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "a red rash"}
RECORDED = json.loads((Path(__file__).parent / "client_bodies.json").read_text())


@pytest.mark.parametrize("name", RECORDED)
async def test_a_recorded_body_is_answered(
    client: httpx.AsyncClient, backend: SmallBackend, name: str
) -> None:
    path, body = RECORDED[name]["path"], RECORDED[name]["body"]
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    if path == CHAT:
        roles = [message["role"] for message in body["messages"]]
        expected = ["system" if role == "developer" else role for role in roles]
        assert [turn.role for turn in backend.calls[0].turns] == expected
    else:
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        assert [call.turns[0].content for call in backend.calls] == prompts


def fields_of(params: Any) -> set[str]:
    """The names of a TypedDict, or of a union of them."""
    kinds = get_args(params) or (params,)
    return set().union(*(kind.__annotations__ for kind in kinds))


@pytest.mark.parametrize("name", sorted(fields_of(ChatParams) - {"messages"}))
async def test_every_field_of_openais_chat_may_be_null(
    client: httpx.AsyncClient, name: str
) -> None:
    response = await client.post(CHAT, json={"messages": [USER], name: None})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("name", sorted(fields_of(TextParams) - {"prompt"}))
async def test_every_field_of_openais_completions_may_be_null(
    client: httpx.AsyncClient, name: str
) -> None:
    response = await client.post(TEXT, json={"prompt": "a red rash", name: None})
    assert response.status_code == 200, response.text


MESSAGES = {
    "system": ChatCompletionSystemMessageParam,
    "developer": ChatCompletionDeveloperMessageParam,
    "user": ChatCompletionUserMessageParam,
    "assistant": ChatCompletionAssistantMessageParam,
}


@pytest.mark.parametrize("role", MESSAGES)
async def test_every_field_of_openais_messages_and_parts_may_be_null(
    client: httpx.AsyncClient, role: str
) -> None:
    part = {name: None for name in fields_of(ChatCompletionContentPartTextParam)}
    content = [{**part, "type": "text", "text": "hello"}]
    names = fields_of(MESSAGES[role])
    message = {**dict.fromkeys(names), "role": role, "content": content}
    options = dict.fromkeys(fields_of(ChatCompletionStreamOptionsParam))
    body = {"messages": [message, USER], "stream": True, "stream_options": options}
    response = await client.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    assert fields_of(ChatCompletionContentPartRefusalParam) == {"type", "refusal"}


CACHED = {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}
TURNS: list[tuple[list[dict[str, Any]], list[tuple[str, str]]]] = [
    # Several from the system, wherever they stand; developer is system.
    (
        [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, USER],
        [("system", "a"), ("system", "b"), ("user", "a red rash")],
    ),
    (
        [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}, USER],
        [("system", "a"), ("system", "b"), ("user", "a red rash")],
    ),
    (
        [{"role": "developer", "content": "a"}, {"role": "system", "content": "b"}, USER],
        [("system", "a"), ("system", "b"), ("user", "a red rash")],
    ),
    (
        [USER, {"role": "system", "content": "a"}, USER],
        [("user", "a red rash"), ("system", "a"), ("user", "a red rash")],
    ),
    (
        [USER, {"role": "system", "content": "a"}, {"role": "developer", "content": "b"}],
        [("system", "a"), ("system", "b"), ("user", "a red rash")],
    ),
    ([{"role": "assistant", "content": "hi"}, USER], [("assistant", "hi"), ("user", "a red rash")]),
    ([USER, USER], [("user", "a red rash")] * 2),
    # Names, caches and parts in any role.
    ([{**USER, "name": "ann"}], [("user", "a red rash")]),
    ([{**USER, "cache_control": {"type": "ephemeral"}}], [("user", "a red rash")]),
    *(
        ([{"role": role, "content": [CACHED, CACHED], "name": "n"}, USER], [(said, "hello\nhello"),
          ("user", "a red rash")])
        for role, said in {"system": "system", "developer": "system", "user": "user",
                           "assistant": "assistant"}.items()
    ),
    ([{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}], [("user", "hi")]),
    # An assistant that refused, thought, or cited.
    (
        [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, USER],
        [("assistant", "no"), ("user", "a red rash")],
    ),
    (
        [{"role": "assistant", "content": None, "refusal": "no"}, USER],
        [("assistant", "no"), ("user", "a red rash")],
    ),
    (
        [{"role": "assistant", "content": "x", "reasoning_content": "hm", "reasoning": "hm",
          "thinking_blocks": [{"type": "thinking", "thinking": "hm"}],
          "provider_specific_fields": {"refusal": None}}, USER],
        [("assistant", "x"), ("user", "a red rash")],
    ),
    (
        [{"role": "assistant", "content": "x", "annotations": [{"type": "url_citation"}],
          "parsed": None, "images": []}, USER],
        [("assistant", "x"), ("user", "a red rash")],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "turns"), TURNS)
async def test_turns_are_passed_on_in_their_order(
    client: httpx.AsyncClient,
    backend: SmallBackend,
    messages: list[dict[str, Any]],
    turns: list[tuple[str, str]],
) -> None:
    response = await client.post(CHAT, json={"messages": messages})
    assert response.status_code == 200, response.text
    assert [(turn.role, turn.content) for turn in backend.calls[0].turns] == turns
    assert backend.classified == [[text for role, text in turns if role == "user"]]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, "messages.0.role"),
        ({"role": "function", "content": "x", "name": "f"}, "messages.0.role"),
        ({"role": "assistant", "content": "x", "audio": {"id": "1"}}, "messages.0.audio"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages.0.function_call"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "messages.0.tool_calls"),
        ({"role": "assistant", "refusal": ["no"]}, "messages.0.refusal"),
        ({"role": "system", "content": "x", "refusal": "no"}, "messages.0.refusal"),
        ({**USER, "name": 7}, "messages.0.name"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "messages.0.content.0.type",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0.text"),
        ({"role": "user", "content": ["hello"]}, "messages.0.content.0"),
        ({"role": "user", "content": {"type": "text", "text": "x"}}, "messages.0.content"),
        ({"role": "assistant", "content": [{"type": "refusal"}]}, "messages.0.content.0.refusal"),
    ],
)
async def test_what_cannot_be_said_to_the_model_is_named(
    client: httpx.AsyncClient, message: dict[str, Any], param: str
) -> None:
    response = await client.post(CHAT, json={"messages": [message, USER]})
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, param), error
    assert len(error["message"]) < 400


@pytest.mark.parametrize(
    ("field", "nothing", "something"),
    [
        ("min_p", 0, 0.1),
        ("length_penalty", 1.0, 2.0),
        ("ignore_eos", False, True),
        ("skip_special_tokens", True, "no"),
        ("add_generation_prompt", True, "no"),
        ("chat_template_kwargs", {"enable_thinking": False}, {"enable_thinking": True}),
        ("chat_template_kwargs", {}, {"x": 1}),
        ("stop_token_ids", [], [2]),
        ("prompt_logprobs", None, 1),
        ("structured_outputs", None, {"json": {}}),
        ("seed", -1, 2**63),
        ("service_tier", "fast", "gold"),
    ],
)
async def test_vllms_fields(
    client: httpx.AsyncClient, field: str, nothing: Any, something: Any
) -> None:
    response = await client.post(CHAT, json={"messages": [USER], field: nothing})
    assert response.status_code == 200, response.text
    refused = await client.post(CHAT, json={"messages": [USER], field: something})
    assert (refused.status_code, error_of(refused)["param"]) == (400, field)
