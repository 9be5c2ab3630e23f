"""A collector of traces: an HTTP server that keeps the spans which it is sent, as OTLP."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ERROR = 2  # OTLP's status code


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    begins_ns: int
    ends_ns: int
    is_error: bool
    attributes: dict[str, Any]


class Receiver:
    def __init__(self) -> None:
        self.spans: list[ReceivedSpan] = []
        self.bodies: list[bytes] = []

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _values(resource_spans.resource.attributes)["service.name"]
            for scope_spans in resource_spans.scope_spans:
                self.spans += [_received(service, span) for span in scope_spans.spans]

    def of(self, request_id: str) -> dict[str, ReceivedSpan]:
        """The spans of the trace that has this request, by name."""
        traces = {
            span.trace_id
            for span in self.spans
            if span.attributes.get("polyclinic.request_id") == request_id
        }
        assert len(traces) <= 1, f"{request_id} is in {len(traces)} traces"
        return {span.name: span for span in self.spans if span.trace_id in traces}

    def wait_for(
        self, request_id: str, is_complete: Callable[[dict[str, ReceivedSpan]], bool]
    ) -> dict[str, ReceivedSpan]:
        deadline = time.monotonic() + 20
        while not is_complete(found := self.of(request_id)):
            assert time.monotonic() < deadline, f"{request_id}: only {sorted(found)}"
            time.sleep(0.1)
        return found


@contextmanager
def receiving() -> Iterator[tuple[Receiver, str]]:
    """Give a receiver and its endpoint, on loopback."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            receiver.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield receiver, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def _received(service: str, span: Any) -> ReceivedSpan:
    return ReceivedSpan(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == ERROR,
        _values(span.attributes),
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}
