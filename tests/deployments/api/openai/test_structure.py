"""Structured answers as OpenAI's client asks for them, over a tiny model with random weights."""

import asyncio
import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from deployments.api.app import create_api
from tests.deployments.api.ask.conftest import events_of
from tests.deployments.conftest import ADVICE, SmallBackend, error_of
from tests.deployments.tiny_clinic import TinyClinic
from tests.structured_schemas import SCHEMAS

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
USER = {"role": "user", "content": "Say what eczema is."}
BODY: dict[str, Any] = {"model": "derm", "messages": [USER], "max_tokens": 250}
Catalogs = dict[str, tuple[Path, Path]]


class Severity(StrEnum):
    MILD = "mild"
    SEVERE = "severe"


class Drug(BaseModel):
    name: Annotated[str, Field(max_length=8)]
    dose_mg: Annotated[int, Field(ge=1, le=9)]


class Visit(BaseModel):
    severity: Severity
    drugs: Annotated[list[Drug], Field(max_length=2)]
    next_visit: Literal["none", "a week"] | None
    is_urgent: bool


def named(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.fixture(scope="module", params=["thread", "process"])
def clinic(
    request: pytest.FixtureRequest,
    tiny_catalogs: Catalogs,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TinyClinic]:
    state = tmp_path_factory.mktemp("state")
    is_here = request.param == "thread"
    clinic = TinyClinic(*tiny_catalogs["llama"], state, in_process=is_here)
    yield clinic
    clinic.replica.close()


@pytest.fixture
def http(clinic: TinyClinic) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_api(clinic))
    return httpx.AsyncClient(transport=transport, base_url="http://clinic", timeout=60)


@pytest.fixture
def sdk(http: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key="unused", base_url="http://clinic/v1", http_client=http, max_retries=0
    )


async def test_parse_returns_what_pydantic_describes(sdk: openai.AsyncOpenAI) -> None:
    for temperature in (0.0, 1.2):
        chat: Any = await sdk.chat.completions.parse(
            **BODY, temperature=temperature, seed=2, response_format=Visit
        )
        assert isinstance(chat.choices[0].message.parsed, Visit)
    response: Any = await sdk.responses.parse(
        model="derm", input="What is it?", text_format=Visit, max_output_tokens=250
    )
    assert isinstance(response.output_parsed, Visit)
    assert response.text.format.type == "json_schema"


async def test_a_stream_and_several_choices(sdk: openai.AsyncOpenAI) -> None:
    asked: Any = {**BODY, "n": 3, "temperature": 1.0, "seed": 5, "logprobs": True}
    asked["response_format"] = named(SCHEMAS["nested"])
    texts = ["", "", ""]
    reasons = []
    async for chunk in await sdk.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert reasons == ["stop"] * 3
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMAS["nested"])
    assert len(set(texts)) == 3


async def test_many_kinds_at_once(http: httpx.AsyncClient) -> None:
    async def one(schema: Any, model: str) -> None:
        body = {**BODY, "model": model, "response_format": named(schema)}
        reply = (await http.post(CHAT, json=body)).json()
        choice = reply["choices"][0]
        if choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)
            assert "structure_unfinished" not in reply["polyclinic"]["notices"]
        else:
            assert "structure_unfinished" in reply["polyclinic"]["notices"]

    models = ("derm", "cardio", "base")
    await asyncio.gather(*(one(s, models[i % 3]) for i, s in enumerate(SCHEMAS.values())))


CHOICES = ["yes", "no", 'per\'haps "so"', "œdème\nand more"]


@pytest.mark.parametrize(
    "field",
    [
        {"structured_outputs": {"choice": CHOICES}},
        {"guided_choice": CHOICES},
        {"structured_outputs": {"regex": "[A-Z]{2}[0-9]{3}"}},
        {"guided_regex": "[A-Z]{2}[0-9]{3}"},
        {"structured_outputs": {"json": SCHEMAS["flat"]}},
        {"structured_outputs": {"json": json.dumps(SCHEMAS["flat"])}},
        {"guided_json": SCHEMAS["flat"]},
        {"response_format": named(SCHEMAS["flat"])},
    ],
)
async def test_every_name_of_it(http: httpx.AsyncClient, field: dict[str, Any]) -> None:
    bodies = [{**BODY, **field}, {"model": "derm", "prompt": "Eczema?", "max_tokens": 250, **field}]
    for path, body in zip((CHAT, COMPLETIONS), bodies, strict=True):
        reply = await http.post(path, json=body)
        assert reply.status_code == 200, reply.text
        choice = reply.json()["choices"][0]
        text = choice.get("text") or choice["message"]["content"]
        assert choice["finish_reason"] == "stop"
        if "choice" in str(field):
            assert text in CHOICES
        elif "[A-Z]" in str(field):
            assert len(text) == 5
        else:
            jsonschema.validate(json.loads(text), SCHEMAS["flat"])


async def test_a_json_object(http: httpx.AsyncClient) -> None:
    finished = 0
    for seed in range(6):
        body = {**BODY, "temperature": 1, "seed": seed, "response_format": {"type": "json_object"}}
        choice = (await http.post(CHAT, json=body)).json()["choices"][0]
        assert choice["message"]["content"].startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)
            finished += 1
    print(f"{finished} of 6 objects ended by themselves")


async def test_a_response_that_is_not_finished(http: httpx.AsyncClient) -> None:
    long = {"type": "array", "items": {"type": "integer"}, "minItems": 500}
    text = {"format": {"type": "json_schema", "name": "long", "schema": long, "strict": True}}
    body = {"model": "derm", "input": "What is it?", "text": text, "max_output_tokens": 20}
    reply = (await http.post(RESPONSES, json=body)).json()
    assert reply["status"] == "incomplete"
    assert "structure_unfinished" in reply["polyclinic"]["notices"]
    assert reply["text"] == text
    events = events_of((await http.post(RESPONSES, json={**body, "stream": True})).text)
    assert "structure_unfinished" in events[-1][1]["response"]["polyclinic"]["notices"]


BAD = [
    ({"type": "object", "properties": {"a": {"type": "strin"}}}, "properties.a", "strin"),
    ({"properties": {"a": {"items": {"not": {}}}}}, "properties.a.items", "not"),
    ({"anyOf": [{"type": "null"}, {"type": "string", "pattern": "("}]}, "anyOf.1", "unclosed"),
    ({"allOf": [{"type": "string", "pattern": "(?=a)b"}]}, "allOf.0", "look-around"),
    ({"$defs": {"n": {"format": "x", "type": "string"}}, "$ref": "#/$defs/n"}, "$defs.n", "format"),
    ({"$ref": "#/$defs/missing"}, "", "does not exist"),
    ({"$ref": "https://example.org/schema"}, "", "https://example.org/schema"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "", "greater than maximum"),
    ({"properties": 5}, "", "must be an object"),
    ({"items": {"type": "object", "minProperties": 2}}, "items", "come twice"),
    ({"enum": []}, "", "Unsatisfiable"),
    (False, "", "Unsatisfiable"),
    ({"enum": ["a" * 70_000]}, "", "at most 65536"),
    (json.loads('{"items":' * 70 + "{}" + "}" * 70), "", "at most 64"),
    ({"allOf": [{"anyOf": [{"type": "object", "properties": {f"a{i}{j}": {}}} for j in range(9)]}
                for i in range(9)]}, "", "too large"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "where", "words"), BAD, ids=range(len(BAD)))
async def test_a_schema_that_cannot_be_compiled(
    client: httpx.AsyncClient, backend: SmallBackend, schema: Any, where: str, words: str
) -> None:
    asked = {
        CHAT: (
            {"messages": [USER], "response_format": named(schema)},
            "response_format.json_schema.schema",
        ),
        RESPONSES: (
            {
                "input": "a rash",
                "text": {"format": {"type": "json_schema", "name": "a", "schema": schema}},
            },
            "text.format.schema",
        ),
    }
    for path, (body, place) in asked.items():
        error = error_of(await client.post(path, json=body))
        assert (error["code"], error["param"]) == ("invalid_schema", f"{place}.{where}".strip("."))
        assert words in error["message"]
        assert error["message"].startswith(error["param"])
        assert len(error["message"]) < 500
    assert backend.calls == []


@pytest.mark.parametrize(
    ("field", "param", "code"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "unsupported_field"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema",
         "invalid_value"),
        ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_regex", "conflicting_fields"),
        ({"guided_choice": ["a"], "stop": ["b"]}, "stop", "conflicting_fields"),
        ({"guided_choice": ["a"], "min_tokens": 2}, "min_tokens", "conflicting_fields"),
        ({"guided_choice": ["a"], "grounding": "quote"}, "guided_choice", "conflicting_fields"),
        ({"guided_choice": ["a"], "grounding": "cite"}, "guided_choice", "conflicting_fields"),
        ({"guided_choice": ["a", ""]}, "guided_choice.1", "invalid_value"),
        ({"guided_choice": ["a"] * 1001}, "guided_choice", "invalid_schema"),
        ({"guided_choice": "a"}, "guided_choice", "invalid_value"),
        ({"guided_regex": "("}, "guided_regex", "invalid_schema"),
        ({"guided_regex": "\ud800"}, "guided_regex", "invalid_character"),
        ({"guided_regex": "a" * 5000}, "guided_regex", "invalid_schema"),
        ({"guided_json": "{"}, "guided_json", "invalid_schema"),
        ({"guided_json": "5"}, "guided_json", "invalid_schema"),
        ({"guided_json": '{"const": 1, "const": 2}'}, "guided_json", "invalid_schema"),
        ({"guided_json": '{"maximum": NaN}'}, "guided_json", "invalid_schema"),
        ({"guided_json": '{"const": "\\ud83d"}'}, "guided_json", "invalid_schema"),
        ({"guided_json": "[" * 5000}, "guided_json", "invalid_schema"),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar",
         "unsupported_field"),
        ({"structured_outputs": {"xml": 1}}, "structured_outputs.xml", "unknown_field"),
        ({"structured_outputs": {"json": {"a": 1}, "choice": ["a"]}},
         "structured_outputs.choice", "conflicting_fields"),
    ],
)  # fmt: skip
async def test_refusals(
    client: httpx.AsyncClient, field: dict[str, Any], param: str, code: str
) -> None:
    body = json.dumps({"messages": [USER], **field})  # in ASCII: half a surrogate pair too
    reply = await client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400, reply.text
    assert (error_of(reply)["param"], error_of(reply)["code"]) == (param, code)


async def test_what_no_tokenizer_can_begin(http: httpx.AsyncClient) -> None:
    """It compiles, and the model's process finds that nothing keeps to it."""
    error = error_of(await http.post(CHAT, json={**BODY, "response_format": named({"$ref": "#"})}))
    assert (error["code"], error["param"]) == (
        "invalid_schema",
        "response_format.json_schema.schema",
    )


async def test_advice_stands_beside_the_structure(client: httpx.AsyncClient) -> None:
    """The first words of an urgent answer are no JSON."""
    asked = {"messages": [{"role": "user", "content": "her face droops"}], "guided_choice": ["a"]}
    reply = (await client.post(CHAT, json=asked)).json()
    assert not reply["choices"][0]["message"]["content"].startswith(ADVICE)
    assert reply["polyclinic"]["advice"] == ADVICE
    assert reply["polyclinic"]["red_flags"] == ["stroke"]
    stream = await client.post(CHAT, json={**asked, "stream": True})
    first = json.loads(stream.text.splitlines()[0].removeprefix("data: "))
    assert first["polyclinic"]["advice"] == ADVICE
