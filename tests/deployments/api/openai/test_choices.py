"""`n`: several answers to each question, whole and streamed."""

from typing import Any

import httpx
import pytest

from deployments.api.protocol.openai_replies import ChatReply, CompletionReply
from tests.deployments.api.openai.test_completions import USAGE, chunks_of
from tests.deployments.conftest import UNCACHED, SmallBackend, error_of

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = {"messages": [{"role": "user", "content": "a red rash"}]}


async def test_choices_of_a_chat(client: httpx.AsyncClient, backend: SmallBackend) -> None:
    asked = {**MESSAGES, "n": 3, "temperature": 1, "seed": 7}
    body = (await client.post(CHAT, json=asked)).json()
    ChatReply.model_validate(body)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in body["choices"]} == {"A RED RASH"}
    assert [call.sampling.seed for call in backend.calls] == [7, 8, 9]
    assert len({call.request_id for call in backend.calls}) == 3
    assert len(backend.classified) == 1, "the question is routed once"
    assert body["usage"] == {
        "prompt_tokens": 7,
        **UNCACHED,
        "completion_tokens": 9,
        "total_tokens": 16,
    }
    assert all(choice["polyclinic"]["adapter"] == "derm-1" for choice in body["choices"])


async def test_choices_of_each_prompt(client: httpx.AsyncClient) -> None:
    asked = {"prompt": ["a red rash", "on my arm"], "n": 2}
    body = (await client.post(TEXT, json=asked)).json()
    CompletionReply.model_validate(body)
    texts = [(choice["index"], choice["text"]) for choice in body["choices"]]
    assert texts == [(0, "A RED RASH"), (1, "A RED RASH"), (2, "ON MY ARM"), (3, "ON MY ARM")]
    assert body["usage"] == {
        "prompt_tokens": 14,
        **UNCACHED,
        "completion_tokens": 12,
        "total_tokens": 26,
    }


@pytest.mark.parametrize(("path", "body"), [(CHAT, MESSAGES), (TEXT, {"prompt": "a red rash"})])
async def test_choices_of_a_stream(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    *chunks, usage, done = chunks_of((await client.post(path, json={**body, "n": 2, **USAGE})).text)
    assert done == "[DONE]"
    assert usage["usage"] == {
        "prompt_tokens": 7,
        **UNCACHED,
        "completion_tokens": 6,
        "total_tokens": 13,
    }
    texts = {0: "", 1: ""}
    for chunk in chunks:
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice.get("text") or choice.get("delta", {}).get("content") or ""
    assert texts == {0: "A RED RASH", 1: "A RED RASH"}


async def test_citations_and_checks_belong_to_each_choice(client: httpx.AsyncClient) -> None:
    asked = {"messages": [{"role": "user", "content": "eczema"}], "n": 2, "grounding": "quote"}
    body = (await client.post(CHAT, json=asked)).json()
    first, second = body["choices"]
    assert first["message"]["annotations"] == second["message"]["annotations"] != []
    assert first["polyclinic"]["citations"] == second["polyclinic"]["citations"] != []


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63), None])
async def test_seeds_stay_in_their_range(
    client: httpx.AsyncClient, backend: SmallBackend, seed: int | None
) -> None:
    await client.post(CHAT, json={**MESSAGES, "n": 2, "temperature": 1, "seed": seed})
    seeds = [call.sampling.seed for call in backend.calls]
    assert seeds[0] == seed
    assert seed is None or (seeds[1] != seed and -(2**63) <= seeds[1] < 2**63)  # type: ignore[operator]


@pytest.mark.parametrize("nothing", [None, False, 1, 1.0, "", [], {}])
async def test_what_asks_for_nothing_is_one(client: httpx.AsyncClient, nothing: Any) -> None:
    body = (await client.post(CHAT, json={**MESSAGES, "n": nothing})).json()
    assert len(body["choices"]) == 1
    assert "polyclinic" not in body["choices"][0]


@pytest.mark.parametrize("n", [0, 9, -1, 1.5, True, "2"])
async def test_other_numbers_are_refused(client: httpx.AsyncClient, n: Any) -> None:
    for path, body in ((CHAT, MESSAGES), (TEXT, {"prompt": "a red rash"})):
        response = await client.post(path, json={**body, "n": n})
        assert response.status_code == 400, n
        assert error_of(response)["param"] == "n"


async def test_too_many_together_are_refused(client: httpx.AsyncClient) -> None:
    response = await client.post(TEXT, json={"prompt": ["a rash"] * 8, "n": 5})
    error = error_of(response)
    assert (response.status_code, error["param"], error["limit"]) == (400, "n", 32)
    assert "8 prompts are 40 answers" in error["message"]
