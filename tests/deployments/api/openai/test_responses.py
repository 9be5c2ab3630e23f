"""/v1/responses, as OpenAI's own client reads it and as plain JSON."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response

from deployments.api.app import create_api
from deployments.engine.request import ErrorInfo
from tests.deployments.api.ask.conftest import events_of
from tests.deployments.conftest import ADVICE, SmallBackend, error_of

PATH = "/v1/responses"


@pytest.fixture
async def sdk(backend: SmallBackend) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx.ASGITransport(create_api(backend))
    async with httpx.AsyncClient(transport=transport) as http:
        yield openai.AsyncOpenAI(
            api_key="unused", base_url="http://clinic/v1", http_client=http, max_retries=0
        )


async def test_a_text(sdk: openai.AsyncOpenAI, backend: SmallBackend) -> None:
    response = await sdk.responses.create(
        model="auto", input="a red rash", instructions="Be brief.", max_output_tokens=20
    )
    assert response.output_text == "A RED RASH"
    assert (response.status, response.model, response.object) == ("completed", "derm-1", "response")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (7, 3)
    [call] = backend.calls
    assert [(t.role, t.content) for t in call.turns] == [
        ("system", "Be brief."),
        ("user", "a red rash"),
    ]
    assert call.sampling.max_tokens == 20
    assert call.sampling.temperature == 0
    Response.model_validate(response.model_dump(), strict=True)


async def test_a_stream_is_the_clients_own_events(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.responses.create(model="derm-1", input="a red rash", stream=True)
    events = [event async for event in stream]
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))  # type: ignore[union-attr]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == (
        "A RED RASH"
    )
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "A RED RASH"


async def test_the_clients_own_stream_helper_ends_with_the_whole(sdk: openai.AsyncOpenAI) -> None:
    async with sdk.responses.stream(model="base", input="one two") as stream:
        texts = [
            event.delta async for event in stream if event.type == "response.output_text.delta"
        ]
        final = await stream.get_final_response()
    assert "".join(texts) == final.output_text == "ONE TWO"


async def test_a_conversation_goes_on_with_the_output_of_the_reply(
    sdk: openai.AsyncOpenAI, backend: SmallBackend
) -> None:
    """Nothing is stored: the client sends back what it got, citations included."""
    asked: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "eczema"}]}]
    first = await sdk.responses.create(model="auto", input=asked, extra_body={"grounding": "quote"})
    part = first.output[0].content[0]  # type: ignore[union-attr, index]
    assert part.type == "output_text"
    assert part.annotations
    assert part.text[part.annotations[0].start_index] == "["  # type: ignore[union-attr]
    asked += [item.model_dump() for item in first.output]
    asked.append({"role": "user", "content": "since two weeks"})
    second = await sdk.responses.create(model="auto", input=asked)
    assert second.output_text == "SINCE TWO WEEKS"
    turns = backend.calls[-1].turns
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]
    assert turns[1].content == first.output_text


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_was_cut_is_incomplete(
    client: httpx.AsyncClient, backend: SmallBackend, stream: bool
) -> None:
    backend.times_out_after = 2
    reply = await client.post(PATH, json={"input": "one two three", "stream": stream})
    body = reply.json() if not stream else events_of(reply.text)[-1][1]["response"]
    assert (body["status"], body["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    assert body["polyclinic"]["finish_reason"] == "timeout"
    assert body["output"][0]["content"][0]["text"] == "ONE TWO"


@pytest.mark.parametrize("stream", [False, True])
async def test_advice_stands_first(client: httpx.AsyncClient, stream: bool) -> None:
    reply = await client.post(PATH, json={"input": "her face droops", "stream": stream})
    body = reply.json() if not stream else events_of(reply.text)[-1][1]["response"]
    assert body["output"][0]["content"][0]["text"] == f"{ADVICE}HER FACE DROOPS"
    assert body["polyclinic"]["red_flags"] == ["stroke"]


async def test_a_failure_before_the_answer_is_a_status(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    backend.error = ErrorInfo("queue_full", "full", retry_after_s=3)
    for stream in (False, True):
        reply = await client.post(PATH, json={"input": "a rash", "stream": stream})
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "3")


async def test_a_failure_in_a_stream_is_its_last_event(
    client: httpx.AsyncClient, sdk: openai.AsyncOpenAI, backend: SmallBackend
) -> None:
    backend.break_after = 1
    reply = await client.post(PATH, json={"input": "one two", "stream": True})
    name, data = events_of(reply.text)[-1]
    assert (name, data["type"], data["code"]) == ("error", "error", "replica_lost")
    stream = await sdk.responses.create(model="base", input="one two", stream=True)
    with pytest.raises(openai.APIError, match="lost"):
        [event async for event in stream]


THOUGHTS: dict[str, Any] = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [{"type": "summary_text", "text": "hm"}],
    "content": [{"type": "reasoning_text", "text": "hm"}],
    "encrypted_content": None,
    "status": "completed",
}
ASKED = {"role": "user", "content": "a red rash"}


async def test_thoughts_before_an_earlier_answer_are_no_turns(
    sdk: openai.AsyncOpenAI, backend: SmallBackend
) -> None:
    """As in a chat's messages; another model's reply is sent back as it came."""
    asked: list[Any] = [ASKED, THOUGHTS, {"role": "assistant", "content": "HM"}, THOUGHTS, ASKED]
    reply = await sdk.responses.create(input=asked, instructions="Be brief.")
    assert reply.output_text == "A RED RASH"
    assert [turn.role for turn in backend.calls[0].turns] == [
        "system", "user", "assistant", "user",
    ]  # fmt: skip


async def test_the_choice_of_no_tool_is_said_back(client: httpx.AsyncClient) -> None:
    for choice, said in ((None, "auto"), ("auto", "auto"), ("none", "none")):
        reply = await client.post(PATH, json={"input": "a red rash", "tool_choice": choice})
        assert (reply.json()["tool_choice"], reply.json()["tools"]) == (said, [])


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"input": []}, "input"),
        ({"input": "1234"}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [THOUGHTS], "instructions": "Be brief."}, "input"),
        ({"input": [{**THOUGHTS, "encrypted_content": "x"}, ASKED]}, "input.0.encrypted_content"),
        ({"input": [{**THOUGHTS, "mood": 1}, ASKED]}, "input.0.mood"),
        ({"input": [THOUGHTS, {"role": "user", "content": "a rash\x07"}]}, "input.1.content"),
        ({"input": [{"type": "function_call", "name": "f"}, ASKED]}, "input.0"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
         "input"),
        ({"instructions": "Be\x07 brief."}, "instructions"),
        ({"input": [{"role": "user", "content": "a rash\x07"}], "instructions": "Be brief."},
         "input.0.content"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_by_its_own_name(
    client: httpx.AsyncClient, field: dict[str, Any], param: str
) -> None:
    reply = await client.post(PATH, json={"input": "a red rash", **field})
    assert reply.status_code == 400, reply.text
    error = error_of(reply)
    assert error["param"].startswith(param)
    assert "messages" not in error["message"]
    assert "max_completion_tokens" not in error["message"]


@pytest.mark.parametrize(
    "field",
    [
        {"store": True, "metadata": {"a": "b"}, "user": "u", "prompt_cache_key": "k"},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "include": []},
        {"reasoning": {"effort": None}, "truncation": "disabled", "service_tier": "auto"},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}, "background": False},
        {"previous_response_id": None, "conversation": None, "top_logprobs": 0},
        {"tools": [{"type": "function", "name": "f"}], "tool_choice": "none"},
        {"include": ["reasoning.encrypted_content"], "a_field_of_the_future": None},
        {"truncation": None, "text": {"format": None, "mood": None}, "reasoning": {}},
        {"input": [{"type": None, "role": "user", "content": "a red rash"}]},
        {"stream_options": {}},
        {"stream_options": {"include_obfuscation": None}},
    ],
)
async def test_what_asks_for_nothing_is_accepted(
    client: httpx.AsyncClient, field: dict[str, Any]
) -> None:
    reply = await client.post(PATH, json={"input": "a red rash", **field})
    assert reply.status_code == 200, reply.text
    assert reply.json()["metadata"] == field.get("metadata", {})
    json.dumps(reply.json())


@pytest.mark.parametrize("schema", [{}, {"schema": None}, {"schema": True}, {"schema": {}}])
async def test_a_format_is_said_back_as_the_client_reads_it(
    client: httpx.AsyncClient, schema: dict[str, Any]
) -> None:
    asked = {"format": {"type": "json_schema", "name": "x", **schema}}
    reply = await client.post(PATH, json={"input": "a red rash", "text": asked})
    assert Response.model_validate_json(reply.text, strict=True).text is not None
    assert reply.json()["text"]["format"] == {"type": "json_schema", "name": "x", "schema": {}}


async def test_too_long_a_conversation_has_the_code_that_clients_trim_on(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    backend.limits = backend.limits.model_copy(update={"max_question_chars": 10})
    error = error_of(await client.post(PATH, json={"input": "a rash on my arm"}))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
