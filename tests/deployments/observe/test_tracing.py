"""When traces are asked for, what keeps them from being sent, and what spans look like."""

import os
import socket
import threading
import time

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from deployments.observe import tracing
from deployments.strict_model import SettingsError

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
HERE = {ENDPOINT: "http://localhost:4318"}
CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("environment", "is_wanted"),
    [
        ({}, False),
        ({ENDPOINT: ""}, False),
        (HERE, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://localhost:4318"}, False),
        (HERE | {"OTEL_SDK_DISABLED": "true"}, False),
        (HERE | {"OTEL_SDK_DISABLED": "TRUE"}, False),
        (HERE | {"OTEL_SDK_DISABLED": "false"}, True),
        (HERE | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (HERE | {"OTEL_TRACES_EXPORTER": "otlp"}, True),
    ],
)
def test_the_environment_turns_it_on(environment: dict[str, str], is_wanted: bool) -> None:
    assert tracing.is_wanted(environment) is is_wanted


@pytest.mark.parametrize("address", ["localhost:4318", "4318", "grpc://localhost:4317", "http://"])
def test_an_endpoint_that_is_no_url_is_refused(address: str) -> None:
    problem = tracing.tracing_problem({ENDPOINT: address})
    assert problem is not None
    assert address in problem
    assert "http://localhost:4318" in problem


@pytest.mark.parametrize("protocol", ["grpc", "http/json"])
def test_another_protocol_is_refused(protocol: str) -> None:
    problem = tracing.tracing_problem(HERE | {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol})
    assert problem is not None
    assert protocol in problem
    assert "http/protobuf" in problem
    assert tracing.tracing_problem(HERE | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}) is None


@pytest.mark.parametrize("missing", ["opentelemetry.exporter.nowhere", "nowhere.at.all"])
def test_without_the_exporter_it_is_refused(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_EXPORTER", missing)
    problem = tracing.tracing_problem(HERE)
    assert problem is not None
    assert "polyclinic[tracing]" in problem
    assert tracing.tracing_problem({}) is None
    monkeypatch.setenv(ENDPOINT, HERE[ENDPOINT])
    with pytest.raises(SettingsError, match="is not installed"):
        tracing.start_tracing("router", lambda: None)


def test_a_collector_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv(ENDPOINT, address)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")  # seconds; 10 unless set
        monkeypatch.setattr(tracing, "_STOP_TIMEOUT_S", 0.2)
        tracing.start_tracing("router", lambda: "r1")
        assert tracing.is_on()
        started = time.monotonic()
        for _ in range(3000):  # more than are kept for it
            tracing.end(tracing.begin("answer"))
        tracing.stop_tracing()
        assert time.monotonic() - started < 5
        assert not tracing.is_on()
        tracing.stop_tracing()  # again, as a replica that is closed and deleted does
    # The exporter draws its pauses from the global `random`, which Hypothesis watches: it may not
    # outlive this test.
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), thread.name


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_provider", provider)
    return exporter


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def test_off_it_does_nothing() -> None:
    assert not tracing.is_on()
    assert ENDPOINT not in os.environ
    tracing.start_tracing("router", lambda: pytest.fail("nobody asked for it"))
    span = tracing.begin("answer")
    assert span is None
    with tracing.current(span), tracing.spanned("route") as inner:
        assert inner is None
    tracing.child(span, "queue", 0, 1)
    tracing.end(span, "cancelled")
    assert tracing.carrier_of(span) is None


def test_a_call_to_another_process_goes_on_with_the_trace(spans: InMemorySpanExporter) -> None:
    root = tracing.begin("POST /ask", {"traceparent": CLIENT, "tracestate": "v=1"}, is_server=True)
    with tracing.current(root):
        carrier = tracing.carrier_of(answer := tracing.begin("answer"))
    assert carrier is not None
    assert carrier["tracestate"] == "v=1"
    tracing.end(tracing.begin("generate", carrier, is_server=True))
    tracing.end(answer)
    tracing.end(root)
    found = by_name(spans)
    assert {f"{span.context.trace_id:032x}" for span in found.values()} == {CLIENT.split("-")[1]}
    assert f"{parent_of(found['POST /ask']):016x}" == CLIENT.split("-")[2]
    assert parent_of(found["answer"]) == found["POST /ask"].context.span_id
    assert parent_of(found["generate"]) == found["answer"].context.span_id
    assert found["generate"].kind is SpanKind.SERVER


@pytest.mark.parametrize("header", ["", "00-zz-1-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_malformed_traceparent_begins_a_new_trace(
    spans: InMemorySpanExporter, header: str
) -> None:
    with tracing.spanned("unrelated"):
        tracing.end(tracing.begin("POST /ask", {"traceparent": header}))
    assert by_name(spans)["POST /ask"].parent is None


def test_a_client_that_does_not_sample_costs_no_span(spans: InMemorySpanExporter) -> None:
    root = tracing.begin("POST /ask", {"traceparent": CLIENT[:-2] + "00"})
    carrier = tracing.carrier_of(root)
    tracing.end(tracing.begin("generate", carrier))
    tracing.end(root)
    assert by_name(spans) == {}


def test_an_exception_is_its_type(spans: InMemorySpanExporter) -> None:
    def fail() -> None:
        with tracing.spanned("route"):
            raise ValueError("my zebrafish hurts")

    with pytest.raises(ValueError, match="zebrafish"):
        fail()
    span = by_name(spans)["route"]
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {}) == {"error.type": "ValueError"}
    assert "zebrafish" not in span.to_json()


def test_a_child_has_the_times_that_it_is_given(spans: InMemorySpanExporter) -> None:
    parent = tracing.begin("generate")
    now = time.time_ns()
    tracing.child(parent, "queue", now, now + 5)
    tracing.child(parent, "decode", now + 5, now, "timeout")  # a clock that went back
    tracing.end(parent)
    found = by_name(spans)
    assert (found["queue"].start_time, found["queue"].end_time) == (now, now + 5)
    assert found["decode"].start_time == found["decode"].end_time == now + 5
    assert (found["decode"].attributes or {})["error.type"] == "timeout"
    assert parent_of(found["queue"]) == found["generate"].context.span_id
