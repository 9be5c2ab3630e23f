"""The spans and the record of one answer, however it ends."""

import logging
import time
from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from adapters.prompting import Message
from deployments.engine.request import (
    ErrorInfo,
    FinishReason,
    SamplingParams,
    Timings,
    TokenEvent,
    failed_event,
)
from deployments.messages import GenerateRequest
from deployments.model.answers import AnswerMetrics, AnswerWatch
from deployments.observe import tracing

CONTEXT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
UNLOADED = ErrorInfo("adapter_unavailable", "adapter 'derm' cannot be loaded")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_provider", provider)
    return exporter


def call(trace_context: dict[str, str] | None) -> GenerateRequest:
    turns = (Message("user", "my zebrafish hurts"),)
    sampling = SamplingParams(8)
    return GenerateRequest("r", turns, "derm", sampling, False, trace_context=trace_context)


def event(
    num_tokens: int, timings: Timings, reason: FinishReason | None, error: ErrorInfo | None = None
) -> TokenEvent:
    return TokenEvent("r", "zebrafish", num_tokens, 7, timings, reason, error)


def answered(watch: AnswerWatch) -> None:
    watch.leased("active")
    watch.accepted()
    watch.saw(event(1, Timings(0.001, 0.002), None))
    watch.saw(event(8, Timings(0.001, 0.002, 0.003), FinishReason.LENGTH))


def loaded_first(watch: AnswerWatch) -> None:
    time.sleep(0.003)
    answered(watch)


def timed_out(watch: AnswerWatch) -> None:
    watch.leased("active")
    watch.accepted()
    watch.saw(event(3, Timings(0.001, 0.002, 0.003), FinishReason.TIMEOUT))


def timed_out_in_the_queue(watch: AnswerWatch) -> None:
    watch.leased("active")
    watch.accepted()
    watch.saw(event(0, Timings(None, None, 0.003), FinishReason.TIMEOUT))


def failed_in_a_step(watch: AnswerWatch) -> None:
    watch.leased("active")
    watch.accepted()
    failed = ErrorInfo("decoder_failed", "it failed")
    watch.saw(event(0, Timings(0.001, None, 0.002), FinishReason.ERROR, failed))


def left_while_streaming(watch: AnswerWatch) -> None:
    watch.leased("active")
    watch.accepted()
    watch.saw(event(1, Timings(0.001, 0.002), None))


def left_before_any_event(watch: AnswerWatch) -> None:
    watch.leased("active")
    watch.accepted()


def refused_by_the_engine(watch: AnswerWatch) -> None:
    watch.leased("active")
    watch.accepted()
    watch.failed(failed_event("r", ErrorInfo("queue_full", "full")))


def adapter_does_not_load(watch: AnswerWatch) -> None:
    time.sleep(0.003)
    watch.failed(failed_event("r", UNLOADED))


def left_while_loading(watch: AnswerWatch) -> None:
    """Nothing more was heard of it."""


Course = Callable[[AnswerWatch], None]
# What happens -> the phases that are shown, and how the answer ends.
COURSES: list[tuple[Course, list[str], str | None]] = [
    (answered, ["queue", "prefill", "decode"], None),
    (loaded_first, ["adapter_load", "queue", "prefill", "decode"], None),
    (timed_out, ["queue", "prefill", "decode"], "timeout"),
    (timed_out_in_the_queue, ["queue"], "timeout"),
    (failed_in_a_step, ["queue", "prefill"], "decoder_failed"),
    (left_while_streaming, ["queue", "prefill", "decode"], "cancelled"),
    (left_before_any_event, ["engine"], "cancelled"),
    (refused_by_the_engine, ["queue"], "queue_full"),
    (adapter_does_not_load, ["adapter_load"], "adapter_unavailable"),
    (left_while_loading, [], "cancelled"),
]


def error_of(span: ReadableSpan) -> object:
    return (span.attributes or {}).get("error.type")


@pytest.mark.parametrize(("course", "phases", "error"), COURSES)
def test_every_course_ends_its_spans(
    spans: InMemorySpanExporter, course: Course, phases: list[str], error: str | None
) -> None:
    watch = AnswerWatch(call(CONTEXT), AnswerMetrics(), is_logged=False)
    course(watch)
    watch.end()
    *children, answer = spans.get_finished_spans()
    assert answer.name == "generate"
    assert answer.parent is not None
    assert f"{answer.parent.span_id:016x}" == CONTEXT["traceparent"].split("-")[2]
    assert [span.name for span in children] == phases
    assert error_of(answer) == error
    assert (answer.attributes or {})["polyclinic.outcome"] == (error or "length")
    for child in children:
        assert child.parent is not None
        assert child.parent.span_id == answer.context.span_id
        assert child.end_time is not None
        assert child.start_time is not None
        assert child.start_time <= child.end_time
    errors = [error_of(child) for child in children]
    assert errors[:-1] == [None] * len(errors[:-1])
    assert errors[-1:] == ([error] if children else [])
    assert "zebrafish" not in "".join(span.to_json() for span in spans.get_finished_spans())


@pytest.mark.parametrize(("course", "phases", "error"), COURSES)
def test_every_course_has_one_record(
    our_records: list[logging.LogRecord], course: Course, phases: list[str], error: str | None
) -> None:
    watch = AnswerWatch(call(None), AnswerMetrics(), is_logged=True)
    course(watch)
    watch.end()
    [record] = our_records
    fields = vars(record)
    assert (fields["event"], fields["request_id"]) == ("generate", "r")
    assert (fields["outcome"], fields["adapter"]) == (error or "length", "derm")
    assert "zebrafish" not in str(fields)


def test_without_a_context_there_is_no_span(spans: InMemorySpanExporter) -> None:
    watch = AnswerWatch(call(None), AnswerMetrics(), is_logged=False)
    answered(watch)
    watch.end()
    assert spans.get_finished_spans() == ()
