"""OpenAI's client, LangChain and LiteLLM against real Ray Serve: tools, schemas, scores, usage.

`make test-long` installs LiteLLM; by hand: pip install -e '.[long]'.
"""

import json
import math
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.e2e.test_clients import MAX_TOKENS, SKIN, base_url, client, clinic

__all__ = ["base_url", "client", "clinic"]  # fixtures
pytestmark = pytest.mark.long

QUESTION: str = SKIN[0]["content"]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Book an appointment.",
        "parameters": {"type": "object", "properties": {"day": {"type": "string"}}},
    },
}


class Triage(BaseModel):
    """Say who should see the patient."""

    specialty: Literal["dermatology", "cardiology"]
    is_urgent: bool


def test_openai_tools_are_refused_by_name_unless_none_may_be_called(client: openai.OpenAI) -> None:
    asked: Any = {"model": "derm", "messages": SKIN, "max_tokens": 4, "tools": [TOOL]}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asked)
    assert (refused.value.param, refused.value.code) == ("tools", "unsupported_field")
    with_none = client.chat.completions.create(**asked, tool_choice="none")
    asked.pop("tools")
    without = client.chat.completions.create(**asked)
    assert with_none.choices[0].message.content == without.choices[0].message.content


def test_openai_parses_an_answer_that_keeps_to_a_schema(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model="derm", messages=SKIN, response_format=Triage, max_completion_tokens=64
    )
    assert isinstance(parsed.choices[0].message.parsed, Triage)
    response = client.responses.parse(
        model="cardio", input=QUESTION, text_format=Triage, max_output_tokens=64
    )
    assert isinstance(response.output_parsed, Triage)


def test_openai_reads_scores_and_usage_of_a_stream(client: openai.OpenAI) -> None:
    asked: Any = {"model": "derm", "messages": SKIN, "max_tokens": MAX_TOKENS, "logprobs": True}
    whole = client.chat.completions.create(**asked, top_logprobs=3)
    assert whole.choices[0].logprobs is not None
    tokens = whole.choices[0].logprobs.content or []
    assert whole.usage is not None
    assert 0 < len(tokens) <= whole.usage.completion_tokens
    for token in tokens:
        likeliest = token.top_logprobs[0]
        assert token.logprob == pytest.approx(likeliest.logprob), "greedy"
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1 + 1e-6
    chunks = list(
        client.chat.completions.create(
            **asked, top_logprobs=3, stream=True, stream_options={"include_usage": True}
        )
    )
    streamed = [
        token
        for chunk in chunks
        for choice in chunk.choices
        for token in (choice.logprobs.content or [] if choice.logprobs else [])
    ]
    assert [token.token for token in streamed] == [token.token for token in tokens]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@pytest.fixture
def langchain(base_url: str) -> Callable[..., ChatOpenAI]:
    def made(**more: Any) -> ChatOpenAI:
        options: Any = {"base_url": base_url, "api_key": "unused", "max_retries": 0}
        return ChatOpenAI(**{**options, "model": "derm", "max_completion_tokens": 64, **more})

    return made


def test_langchains_tools_are_refused_by_name(langchain: Callable[..., ChatOpenAI]) -> None:
    model = langchain()
    with pytest.raises(openai.BadRequestError, match="tools: not supported by this server"):
        model.bind_tools([TOOL]).invoke(QUESTION)
    answer = model.bind_tools([TOOL], tool_choice="none").invoke(QUESTION)
    assert answer.content == model.invoke(QUESTION).content


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_langchains_structured_output(
    langchain: Callable[..., ChatOpenAI], method: Literal["json_schema", "json_mode"]
) -> None:
    if method == "json_schema":
        found = langchain().with_structured_output(Triage, method=method).invoke(QUESTION)
        assert isinstance(found, Triage)
        return
    raw: Any = (
        langchain(max_completion_tokens=200)
        .bind(response_format={"type": "json_object"})
        .invoke(f"{QUESTION} Answer in JSON.")
    )
    if raw.response_metadata["finish_reason"] == "stop":
        assert isinstance(json.loads(raw.content), dict)
    else:
        assert raw.content.startswith("{")


def test_langchains_scores_and_usage(langchain: Callable[..., ChatOpenAI]) -> None:
    model = langchain(max_completion_tokens=MAX_TOKENS, logprobs=True, top_logprobs=2)
    whole = model.invoke(QUESTION)
    tokens = whole.response_metadata["logprobs"]["content"]
    assert tokens
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] >= len(tokens)
    used = whole.usage_metadata
    assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"]


@pytest.fixture(scope="module")
def litellm() -> Any:
    if find_spec("litellm") is None:
        pytest.skip("litellm is not installed: pip install -e '.[long]'")
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it is fetched
    import litellm

    litellm.telemetry = False
    litellm.num_retries = 0
    return litellm


@pytest.fixture
def asked(base_url: str) -> dict[str, Any]:
    """As LiteLLM's own documentation calls a server that speaks OpenAI's protocol."""
    return {
        "model": "openai/derm",
        "api_base": base_url,
        "api_key": "unused",
        "messages": SKIN,
        "max_tokens": MAX_TOKENS,
    }


litellms = pytest.mark.filterwarnings("ignore")  # what it says of its own dependencies


@litellms
def test_litellm_chats_and_streams_the_same_words(litellm: Any, asked: dict[str, Any]) -> None:
    whole = litellm.completion(**asked)
    assert whole.choices[0].message.content
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    usages = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    assert usages[-1].completion_tokens == whole.usage.completion_tokens


@litellms
def test_litellms_tools_are_refused_by_name(litellm: Any, asked: dict[str, Any]) -> None:
    with pytest.raises(litellm.BadRequestError, match="tools: not supported by this server"):
        litellm.completion(**asked, tools=[TOOL])
    assert litellm.completion(**asked, tools=[TOOL], tool_choice="none").choices[0].message.content


@litellms
def test_litellm_keeps_to_a_schema(litellm: Any, asked: dict[str, Any]) -> None:
    reply = litellm.completion(**{**asked, "max_tokens": 64}, response_format=Triage)
    Triage.model_validate_json(reply.choices[0].message.content)


@litellms
def test_litellm_reads_scores(litellm: Any, asked: dict[str, Any]) -> None:
    reply = litellm.completion(**asked, logprobs=True, top_logprobs=2)
    tokens = reply.choices[0].logprobs.content
    assert tokens
    assert all(len(token.top_logprobs) == 2 for token in tokens)


@litellms
def test_litellm_knows_what_is_too_long(litellm: Any, asked: dict[str, Any]) -> None:
    long = [{"role": "user", "content": "a red rash " * 500}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**{**asked, "messages": long})


@litellms
def test_litellm_calls_responses(litellm: Any, base_url: str) -> None:
    most = 16  # LiteLLM asks for no fewer
    options = {"api_base": base_url, "api_key": "unused", "max_output_tokens": most}
    reply = litellm.responses(model="openai/derm", input=QUESTION, **options)
    body = {"model": "derm", "input": QUESTION, "max_output_tokens": most}
    said = httpx.post(f"{base_url}/responses", json=body).json()
    assert reply.output[0].content[0].text == said["output"][0]["content"][0]["text"]
