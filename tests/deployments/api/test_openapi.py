"""/openapi.json says what the API does: its replies, its paths, and thousands of made-up requests.

schemathesis makes the requests from the document, good ones and bad ones, and checks each response
against it.
"""

import json
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as openapi_checks

from deployments.adapter_admin import AdapterAdmin
from deployments.api.app import create_api
from deployments.api.openapi import openapi_document
from deployments.api.protocol.openai import ChatRequest
from deployments.engine.request import ErrorInfo, FinishReason
from tests.deployments.api.ask.conftest import ClinicOfFour, events_of
from tests.deployments.conftest import VOCABULARY, SmallBackend
from tests.deployments.quiet_admin import quiet_admin
from tests.test_layout import ROOT

DOCUMENT = openapi_document()
# All but positive_data_acceptance: which texts are questions (a Latin letter, no control
# characters, limits that an operator sets) is more than a schema says.
CHECKS = [
    not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
    openapi_checks.unsupported_method,
]
CHAT = {"messages": [{"role": "user", "content": "a red rash"}]}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def check(name: str, value: Any) -> None:
    """`value` is what the document calls `name`."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    Draft202012Validator(schema).validate(value)


@pytest.fixture
def admin(tmp_path: Path) -> AdapterAdmin:
    return quiet_admin(tmp_path)


def test_every_path_is_described_with_its_method(admin: AdapterAdmin) -> None:
    routes = {
        (route.path, method)  # type: ignore[attr-defined]
        for route in create_api(SmallBackend(), admin).routes
        if route.path != "/" and not route.path.startswith("/static/")  # type: ignore[attr-defined]
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    }
    described = {
        (path, method.upper()) for path, methods in DOCUMENT["paths"].items() for method in methods
    }
    assert described == routes
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert DOCUMENT["info"]["version"] == project["version"]
    Draft202012Validator.check_schema({"$defs": DOCUMENT["components"]["schemas"]})


async def test_the_document_is_served(client: httpx.AsyncClient, admin: AdapterAdmin) -> None:
    without = openapi_document(with_admin=False)
    assert (await client.get("/openapi.json")).json() == json.loads(json.dumps(without))
    transport = httpx.ASGITransport(create_api(SmallBackend(), admin))
    async with httpx.AsyncClient(transport=transport, base_url="http://clinic") as operator:
        served = (await operator.get("/openapi.json")).json()
    assert served == json.loads(json.dumps(DOCUMENT))


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/ask", {"question": "a red rash"}, "AskReply"),
        ("/ask", {"question": "a red rash", "specialty": "cardiology"}, "AskReply"),
        ("/ask", {"question": "a red rash", "consult": 2}, "AskReply"),
        ("/ask", {"question": "football", "consult": 2}, "AskReply"),
        ("/route", {"questions": ["a red rash", "football"]}, "RoutesReply"),
        ("/v1/chat/completions", CHAT, "ChatReply"),
        ("/v1/completions", {"prompt": "a red rash"}, "CompletionReply"),
        ("/v1/responses", {"input": "a red rash"}, "ResponsesReply"),
        ("/v1/responses", {"input": "eczema", "grounding": "cite"}, "ResponsesReply"),
        ("/ask", {"question": "eczema", "grounding": "cite"}, "AskReply"),
        ("/ask", {"question": "eczema", "grounding": "quote", "consult": 2}, "AskReply"),
        ("/v1/chat/completions", {**CHAT, "grounding": "quote"}, "ChatReply"),
        ("/v1/completions", {"prompt": ["eczema", "a"], "grounding": "cite"}, "CompletionReply"),
        ("/ask", {"question": ""}, "ErrorReply"),
        ("/v1/completions", {"prompt": "a", "model": "gpt-4"}, "ErrorReply"),
        ("/nowhere", {}, "ErrorReply"),
    ],
)
async def test_replies_are_what_the_document_says(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], name: str
) -> None:
    check(name, (await client.post(path, json=body)).json())


SEARCH = "/v1/references/search?q=eczema"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/derm-1", "/healthz", "/readyz", SEARCH])
async def test_what_is_read_is_what_the_document_says(client: httpx.AsyncClient, path: str) -> None:
    names = {"/v1/models": "ModelsReply", "/healthz": "HealthReply", "/readyz": "ReadyReply"}
    names[SEARCH] = "SearchReply"
    check(names.get(path, "ModelReply"), (await client.get(path)).json())


@pytest.mark.parametrize("question", ["what is eczema", "a red rash"])
@pytest.mark.parametrize("grounding", ["quote", "cite"])
async def test_streams_with_passages_too(
    client: httpx.AsyncClient, question: str, grounding: str
) -> None:
    asked = {"question": question, "grounding": grounding, "stream": True}
    events = events_of((await client.post("/ask", json=asked)).text)
    assert [name for name, _ in events[:2]] == ["route", "citations"]
    for name, data in events:
        check(f"Ask{name.capitalize()}Event", data)
    chat = {"messages": [{"role": "user", "content": question}], "grounding": grounding, **STREAM}
    text = (await client.post("/v1/chat/completions", json=chat)).text
    for line in text.split("\n\n")[:-2]:
        check("Chunk", json.loads(line.removeprefix("data: ")))


async def test_failed_opinions_and_streams_of_ask_too() -> None:
    backend = ClinicOfFour()
    backend.failing = {"dermatology-1"}
    transport = httpx.ASGITransport(create_api(backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://clinic") as client:
        asked = {"question": "a red rash", "consult": 2}
        check("AskReply", (await client.post("/ask", json=asked)).json())
        events = events_of((await client.post("/ask", json={**asked, "stream": True})).text)
    names = {"route": "AskRouteEvent", "token": "AskTokenEvent", "done": "AskDoneEvent"}
    for name, data in events:
        failed = "AskFailedEvent" if "error" in data else "AskAnswerEvent"
        check(names.get(name, failed), data)
    assert {name for name, _ in events} == {*names, "answer"}


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "a rash"})]
)
async def test_chunks_are_what_the_document_says(
    client: httpx.AsyncClient, backend: SmallBackend, path: str, body: dict[str, Any]
) -> None:
    text = (await client.post(path, json={**body, **STREAM})).text
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    for line in lines:
        check("Chunk", json.loads(line))
    backend.break_after = 1
    text = (await client.post(path, json={**body, **STREAM})).text
    check("StreamErrorEvent", json.loads(text.split("\n\n")[-2].removeprefix("data: ")))


_NAMES = {"output_item": "ItemEvent", "content_part": "PartEvent"}
_TEXT_EVENTS = {"delta": "DeltaEvent", "done": "TextDoneEvent", "added": "AnnotationEvent"}


def name_of(event: str) -> str:
    """The model of an event of /v1/responses, by its name."""
    if event == "error":
        return "FailedEvent"
    _, kind, *rest = event.split(".")
    return _TEXT_EVENTS[rest[-1]] if kind == "output_text" else _NAMES.get(kind, "ResponseEvent")


async def test_events_of_responses_are_what_the_document_says(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    asked = {"input": "what is eczema", "grounding": "quote", "stream": True}
    events = events_of((await client.post("/v1/responses", json=asked)).text)
    backend.break_after = 1
    failing = {"input": "a red rash", "stream": True}
    events += events_of((await client.post("/v1/responses", json=failing)).text)
    for name, data in events:
        assert data["type"] == name
        check(name_of(name), data)
    assert {name_of(name) for name, _ in events} == {
        "ResponseEvent",
        "ItemEvent",
        "PartEvent",
        "DeltaEvent",
        "AnnotationEvent",
        "TextDoneEvent",
        "FailedEvent",
    }


def test_a_neutral_field_is_in_the_document_and_another_is_not() -> None:
    for name in ChatRequest.neutral():
        check("ChatRequest", {**CHAT, name: None})
    check("ChatRequest", {**CHAT, "n": 1, "tools": []})
    validator = Draft202012Validator(
        {"$ref": "#/components/schemas/ChatRequest", "components": DOCUMENT["components"]}
    )
    check("ChatRequest", {**CHAT, "n": 8})
    assert not validator.is_valid({**CHAT, "n": 9})
    assert not validator.is_valid({**CHAT, "max_token": 2})


class Moody(SmallBackend):
    """Sometimes an answer fails, sometimes its deadline passes: by the question's length."""

    async def generate(self, call: Any) -> Any:
        moods = (None, "queue_full", "replica_lost", "timeout", None, None)
        mood = moods[len(call.turns[-1].content) % len(moods)]
        if mood is None:
            async for event in super().generate(call):
                yield event
        elif mood == "timeout":
            yield self._event(call, "", 0, FinishReason.TIMEOUT)
        else:
            info = ErrorInfo(mood, "try again", retry_after_s=2)
            yield self._event(call, "", 0, FinishReason.ERROR, info)


async def test_what_an_operator_is_told_is_what_the_document_says(admin: AdapterAdmin) -> None:
    transport = httpx.ASGITransport(create_api(SmallBackend(), admin))
    async with httpx.AsyncClient(transport=transport, base_url="http://clinic") as operator:
        check("AdaptersReply", (await operator.get("/v1/adapters")).json())
        pinned = await operator.patch("/v1/adapters/derm", json={"pinned": True})
        check("ChangeReply", pinned.json())
        assert pinned.json()["adapter"]["pinned"] is True
        full = await operator.patch("/v1/adapters/cardio", json={"pinned": True})
        assert (full.status_code, full.json()["error"]["code"]) == (409, "adapter_conflict")
        check("ErrorReply", full.json())
        disabled = await operator.patch("/v1/adapters/derm", json={"state": "disabled"})
        check("ChangeReply", disabled.json())
        check("ChangeReply", (await operator.delete("/v1/adapters/derm")).json())
        gone = await operator.post("/v1/adapters/derm/rollback")
    assert gone.status_code == 404
    check("ErrorReply", gone.json())


def statuses_of_made_up_requests(
    num_each: int, admin: AdapterAdmin, *, derandomize: bool
) -> Counter[int]:
    """`num_each` good and `num_each` bad requests for every operation; statuses -> counts."""
    statuses: Counter[int] = Counter()
    api = schemathesis.openapi.from_asgi("/openapi.json", create_api(Moody(), admin))
    number = settings(
        max_examples=num_each,
        deadline=None,
        database=None,
        derandomize=derandomize,
        suppress_health_check=list(HealthCheck),
    )
    for found in api.get_all_operations():
        # Without a body or a query nothing can be wrong: any x-request-id is accepted.
        has_body = bool([*found.ok().body, *found.ok().query])
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)[: 1 + has_body]:
            requests = found.ok().as_strategy(generation_mode=mode)
            if mode is GenerationMode.POSITIVE:
                requests = requests.map(readable)

            @number
            @given(case=requests)
            def run(case: Any) -> None:
                response = case.call()
                statuses[response.status_code] += 1
                # a full queue and a lost replica are declared; no other 500 may be
                checks = [c for c in CHECKS if response.status_code != 503 or c is not CHECKS[0]]
                case.validate_response(response, checks=checks)

            run()
    return statuses


def readable(case: Any) -> Any:
    """Most made-up texts are no questions, and most made-up names are unknown."""
    known = {"model": "derm-1", "name": "derm"}
    for parameter, value in (case.path_parameters or {}).items():
        if len(value) % 2:
            case.path_parameters[parameter] = known[parameter]
    if "q" in (case.query or {}):
        case.query["q"] = "eczema" if len(str(case.query["q"])) % 2 else "a red rash"
    body = case.body if isinstance(case.body, dict) else {}
    if "source" in body:
        body["source"] = "/no/such/folder"  # others would be looked for on the network
        # Hypothesis draws from the constants of every module that is loaded, so what is made up
        # depends on the tests before. In any order, some are new versions of an adapter.
        if len(str(body.get("name"))) % 2:
            body.pop("specialty", None)
            body["name"] = "derm"
    for field in ("question", "prompt"):
        if isinstance(body.get(field), str):
            body[field] = f"{'a' * (len(body[field]) % 7)} red rash"
    if isinstance(body.get("prompt"), list):
        body["prompt"] = [len(VOCABULARY) - 3] if len(body["prompt"]) % 2 else ["a red rash"] * 2
    if isinstance(body.get("specialty"), str):
        body["specialty"] = "dermatology"
    if isinstance(body.get("model"), str):
        body["model"] = "auto"
    if body.get("questions"):
        body["questions"] = ["a rash" for _ in body["questions"]]
    for message in body.get("messages") or ():
        message["content"] = "a red rash"
    return case


STATUSES = {200, 400, 404, 405, 408, 409, 413, 415, 422, 503}


@pytest.mark.alone
@pytest.mark.slow
def test_made_up_requests(admin: AdapterAdmin) -> None:
    statuses = statuses_of_made_up_requests(10, admin, derandomize=True)
    assert statuses.total() >= 180
    assert {200, 400, 404, 422} <= set(statuses) <= STATUSES, statuses


@pytest.mark.long
def test_three_thousand_made_up_requests(admin: AdapterAdmin) -> None:
    statuses = statuses_of_made_up_requests(145, admin, derandomize=False)
    assert statuses.total() >= 3000, statuses
    assert {200, 400, 404, 408, 409, 422, 503} <= set(statuses) <= STATUSES, statuses
