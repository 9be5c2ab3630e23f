"""Spans of requests for OpenTelemetry. Off unless OTEL_EXPORTER_OTLP_ENDPOINT is set.

    span = begin("answer", adapter="cardiology")    # None while tracing is off
    with current(span):
        ...                                         # spans that begin here are its children
    end(span, error=None, num_tokens=20)

An attribute is a name, a code, a number or an id, never a text of a question or an answer; so an
exception is noted by its type alone. Names of attributes follow OpenTelemetry's conventions for
HTTP, and begin with `polyclinic.` otherwise.
"""

import contextlib
import functools
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deployments.strict_model import SettingsError

if TYPE_CHECKING:  # imported once it is on
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Span, Status, Tracer

Value = str | int | float | bool
# W3C's `traceparent` and `tracestate`, as a call to another process carries them.
Carrier = Mapping[str, str]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
_PROTOCOL = "http/protobuf"
_EXPORTER = "opentelemetry.exporter.otlp.proto.http"
_SCOPE = "polyclinic"
_STOP_TIMEOUT_S = 2.0

_provider: "TracerProvider | None" = None


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether this environment asks for traces."""
    is_disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    is_elsewhere = environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none"
    return any(map(environment.get, _ENDPOINTS)) and not (is_disabled or is_elsewhere)


def tracing_problem(environment: Mapping[str, str]) -> str | None:
    """Return why the traces that this environment asks for cannot be sent; None if they can."""
    if not is_wanted(environment):
        return None
    for name in filter(environment.get, _ENDPOINTS):
        address = urlsplit(environment[name])
        if address.scheme not in ("http", "https") or not address.hostname:
            return f"{name} is '{environment[name]}': give a URL such as http://localhost:4318"
    for name in filter(environment.get, _PROTOCOLS):
        if environment[name] != _PROTOCOL:
            return f"{name} is '{environment[name]}': {_PROTOCOL} is what is sent; unset it"
    if not _has_exporter():
        return (
            f"{next(filter(environment.get, _ENDPOINTS))} is set, and the exporter is not "
            "installed: pip install 'polyclinic[tracing]', or unset it"
        )
    return None


def _has_exporter() -> bool:
    try:
        return importlib.util.find_spec(_EXPORTER) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False


def start_tracing(role: str, instance: Callable[[], str | None]) -> None:
    """Send this process's spans from now on, if the environment asks for it.

    Args:
        role: what the process is; the service is called `polyclinic-ROLE` unless OTEL_SERVICE_NAME
            names it.
        instance: returns the process's own name, if it has one.

    Raises:
        SettingsError: they cannot be sent.
    """
    global _provider
    if problem := tracing_problem(os.environ):
        raise SettingsError("the environment", [problem])
    if _provider is not None or not is_wanted(os.environ):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    described: dict[str, Value] = {"service.namespace": _SCOPE}
    if "OTEL_SERVICE_NAME" not in os.environ:
        described["service.name"] = f"{_SCOPE}-{role}"
    if name := instance():
        described["service.instance.id"] = name
    provider = TracerProvider(resource=Resource.create(described), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _provider = provider


def stop_tracing() -> None:
    """Send what is left, within two seconds, and begin no more spans."""
    global _provider
    provider, _provider = _provider, None
    if provider is None:
        return
    # The SDK's own waits for a collector that does not answer are far longer.
    sending = threading.Thread(target=provider.shutdown, name="last-spans", daemon=True)
    with contextlib.suppress(RuntimeError):  # Python is about to end
        sending.start()
        sending.join(_STOP_TIMEOUT_S)


def is_on() -> bool:
    return _provider is not None


@functools.lru_cache(maxsize=1)  # making one takes as long as a span
def _tracer(provider: "TracerProvider") -> "Tracer":
    return provider.get_tracer(_SCOPE)


def begin(
    name: str,
    parent: Carrier | None = None,
    *,
    is_server: bool = False,
    start_ns: int | None = None,
    attributes: Mapping[str, Value | None] | None = None,
) -> "Span | None":
    """Return a new span; None while tracing is off.

    Args:
        parent: of another process; None: the current span of this one, if there is one.
        is_server: whether it serves a call of another process.
        start_ns: Unix nanoseconds; None: now.
        attributes: those that are None are left out.
    """
    if _provider is None:
        return None
    from opentelemetry.trace import SpanKind

    tracer = _tracer(_provider)
    kind = SpanKind.SERVER if is_server else SpanKind.INTERNAL
    context = None if parent is None else _context_of(parent)
    return tracer.start_span(name, context, kind, _given(attributes or {}), start_time=start_ns)


def child(
    span: "Span | None", name: str, start_ns: int, end_ns: int, error: str | None = None
) -> None:
    """Add a child of `span` whose times are known: what is over needs no span to write to, which
    takes twice as long."""
    if span is None or _provider is None or not span.is_recording():
        return
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

    parent = span.get_span_context()
    own_id = _provider.id_generator.generate_span_id()
    added = ReadableSpan(
        name,
        SpanContext(parent.trace_id, own_id, False, parent.trace_flags, parent.trace_state),
        parent,
        _provider.resource,
        {} if error is None else {"error.type": error},
        instrumentation_scope=_scope(),
        status=_status(error),
        start_time=start_ns,
        end_time=max(start_ns, end_ns),
    )
    _provider._active_span_processor.on_end(added)


def end(
    span: "Span | None",
    error: str | None = None,
    *,
    end_ns: int | None = None,
    attributes: Mapping[str, Value | None] | None = None,
) -> None:
    """End a span; `error` is the code of what went wrong."""
    if span is None:
        return
    span.set_attributes(_given(attributes or {}))
    if error is not None:
        span.set_attribute("error.type", error)
        span.set_status(_status(error))
    span.end(end_ns)


def _status(error: str | None) -> "Status":
    from opentelemetry.trace import Status, StatusCode

    return Status(StatusCode.UNSET if error is None else StatusCode.ERROR)


@functools.cache
def _scope() -> "InstrumentationScope":
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    return InstrumentationScope(_SCOPE)


def current(span: "Span | None") -> contextlib.AbstractContextManager[object]:
    """Make `span` the parent of those that begin inside, in this task and its children."""
    if span is None:
        return contextlib.nullcontext()
    from opentelemetry.trace import use_span

    return use_span(span, record_exception=False, set_status_on_exception=False)


@contextlib.contextmanager
def spanned(name: str) -> Iterator["Span | None"]:
    """Give a span of what happens inside; an exception ends it with its type as the error."""
    span = begin(name)
    error: str | None = None
    try:
        yield span
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        end(span, error)


def carrier_of(span: "Span | None") -> Carrier | None:
    """Return what a call to another process carries, so that its spans are children of `span`."""
    if span is None:
        return None
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return carrier


def _context_of(carrier: Carrier) -> "Context":
    """Return the context of a carrier; an empty one where it is not of W3C's form."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(carrier, Context())


def _given(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in attributes.items() if value is not None}
