"""What an operator sees of requests to the API: records as JSON, refusals, spans; never a text."""

import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from ray._common.formatters import JSONFormatter

from deployments.api.access.api_keys import KeyTable
from deployments.api.app import behind_front_door, create_api
from deployments.engine.request import ErrorInfo
from deployments.live_settings import RouterLiveSettings
from deployments.observe import tracing
from deployments.settings import Settings
from tests.deployments.conftest import SECRET, SmallBackend

CHAT = {"model": "derm-1", "messages": [{"role": "user", "content": f"my {SECRET} hurts"}]}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_provider", provider)
    return exporter


@pytest.fixture
def log(our_log_propagates: None) -> Iterator[io.StringIO]:
    """What the JSON log of a replica would hold, of every logger and from DEBUG up."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(JSONFormatter())
    handler.addFilter(lambda record: not record.name.startswith("httpx"))  # the client's
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.removeHandler(handler)
    root.setLevel(before)


@pytest.fixture
def refused() -> list[str]:
    return []


@pytest.fixture
async def door(backend: SmallBackend, refused: list[str]) -> AsyncIterator[httpx.AsyncClient]:
    backend.limits = RouterLiveSettings(log_requests=True)
    app = behind_front_door(
        create_api(backend),
        Settings(),
        SimpleNamespace(current=KeyTable()),
        lambda: backend.limits,
        count_refusal=refused.append,
        is_logging=lambda: backend.limits.log_requests,
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


def records(log: io.StringIO) -> list[dict[str, Any]]:
    parsed = [json.loads(line) for line in log.getvalue().splitlines()]
    return [record for record in parsed if "event" in record]


async def test_a_request_has_a_record_at_each_stage(
    door: httpx.AsyncClient, log: io.StringIO
) -> None:
    reply = await door.post("/ask", json={"question": f"rash {SECRET}"})
    answer, request = records(log)
    assert {answer["request_id"], request["request_id"]} == {reply.headers["x-request-id"]}
    assert answer["event"] == "answer"
    assert (answer["outcome"], answer["adapter"], answer["num_tokens"]) == ("stop", "derm-1", 2)
    assert request["event"] == "http_request"
    assert (request["method"], request["path"], request["status"]) == ("POST", "/ask", 200)


async def test_no_record_unless_asked_for(
    door: httpx.AsyncClient, log: io.StringIO, backend: SmallBackend
) -> None:
    backend.limits = RouterLiveSettings()
    assert (await door.post("/ask", json={"question": "rash"})).status_code == 200
    assert records(log) == []


@pytest.mark.parametrize(
    ("method", "path", "shown"),
    [
        ("GET", "/v1/models/derm-1", "/v1/models/{model}"),
        ("GET", f"/{SECRET}", "other"),
        ("GET", f"/v1/models?{SECRET}=1", "/v1/models"),
        ("GET", f"/v1/models/{SECRET}/{SECRET}", "other"),
        (SECRET.upper(), "/ask", "/ask"),
    ],
)
async def test_what_a_client_invents_is_not_recorded(
    door: httpx.AsyncClient,
    log: io.StringIO,
    spans: InMemorySpanExporter,
    method: str,
    path: str,
    shown: str,
) -> None:
    await door.request(method, path)
    [request] = records(log)
    assert request["path"] == shown
    [span] = spans.get_finished_spans()
    method = method if method == "GET" else "other"
    assert span.name == f"{method} {shown}"
    assert SECRET not in log.getvalue().lower()
    assert SECRET not in span.to_json().lower()


async def test_refusals_are_counted_by_code_wherever_they_come_from(
    door: httpx.AsyncClient, backend: SmallBackend, refused: list[str]
) -> None:
    await door.post("/ask", json={"question": ""})
    await door.get("/nowhere")
    await door.get("/v1/models", headers={"host": "evil.example"})
    await door.get("/v1/operator")
    await door.post("/ask", json={"question": "rash"}, headers={"x-long": "x" * 40_000})
    backend.refuses = ErrorInfo("queue_full", "full", retry_after_s=1)
    await door.post("/ask", json={"question": "rash"})
    backend.refuses, backend.error = None, ErrorInfo("replica_lost", "lost", retry_after_s=5)
    await door.post("/ask", json={"question": "rash"})
    assert refused == [
        *("empty_text", "path_not_found", "host_not_allowed", "admin_key_required"),
        *("headers_too_large", "queue_full", "replica_lost"),
    ]
    backend.error = None
    assert (await door.post("/ask", json={"question": "rash"})).status_code == 200
    assert len(refused) == 7


async def test_no_word_of_a_question_is_in_a_json_record_or_a_span(
    door: httpx.AsyncClient, log: io.StringIO, spans: InMemorySpanExporter, backend: SmallBackend
) -> None:
    """Everything that can go wrong, as tests/deployments/api/access/test_front_door.py has it."""

    async def post(path: str, body: object) -> int:
        return (await door.post(path, json=body)).status_code

    assert await post("/ask", {"question": f"my {SECRET}"}) == 200
    assert await post("/ask", {"question": f"my {SECRET}", "consult": 2}) == 200
    assert await post("/v1/chat/completions", CHAT) == 200
    assert await post("/v1/chat/completions", {**CHAT, "stream": True}) == 200
    assert await post("/ask", {"question": f"my {SECRET}", "max_tokens": "x"}) == 400
    assert await post("/ask", {"question": f"{SECRET}\x00"}) == 400
    assert await post("/ask", [SECRET]) == 400
    assert await post("/ask", {"question": "rash", "specialty": SECRET}) == 404
    assert await post("/route", {"questions": [SECRET] * 300}) == 400
    backend.raises = RuntimeError(f"cannot read {SECRET}")
    assert await post("/ask", {"question": SECRET}) == 500
    backend.raises = None
    backend.break_after = 1
    assert await post("/v1/chat/completions", {**CHAT, "stream": True}) == 200
    text = log.getvalue()
    assert len(records(log)) > 10
    assert "RuntimeError" in text
    shown = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "replica_lost" in shown
    for found in (text, shown):
        assert SECRET not in found.lower()


async def test_a_broken_stream_is_an_error_of_its_answer(
    door: httpx.AsyncClient, spans: InMemorySpanExporter, backend: SmallBackend
) -> None:
    backend.break_after = 1
    await door.post("/v1/chat/completions", json={**CHAT, "stream": True})
    answer, request = spans.get_finished_spans()
    assert (answer.name, request.name) == ("answer", "POST /v1/chat/completions")
    assert (answer.attributes or {})["error.type"] == "replica_lost"
    assert answer.parent is not None
    assert answer.parent.span_id == request.context.span_id
    assert backend.calls[-1].trace_context is not None


async def test_each_opinion_is_a_span_below_the_request(
    door: httpx.AsyncClient, spans: InMemorySpanExporter
) -> None:
    reply = await door.post("/ask", json={"question": "rash", "consult": 2})
    assert reply.status_code == 200
    *answers, request = spans.get_finished_spans()
    assert answers
    for answer in answers:
        assert answer.name == "answer"
        assert answer.parent is not None
        assert answer.parent.span_id == request.context.span_id


async def test_without_tracing_a_call_carries_no_context(
    door: httpx.AsyncClient, backend: SmallBackend
) -> None:
    await door.post("/ask", json={"question": "rash"}, headers={"traceparent": "00-x"})
    assert backend.calls[-1].trace_context is None
