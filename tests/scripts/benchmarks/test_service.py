"""The service benchmark against a small server that answers as the service does."""

import http.server
import json
import os
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from scripts import benchmark

READY = {"base_model": "tiny", "dtype": "float32", "decoder": "fast", "adapters": [{"name": "a"}]}
EVENTS = (
    {"choices": [{"delta": {"content": "Rest"}}]},
    {"choices": [], "usage": {"completion_tokens": 5}},
)


class Handler(http.server.BaseHTTPRequestHandler):
    num_asked = 0
    bodies: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        self._answer(200, json.dumps(READY))

    def do_POST(self) -> None:
        Handler.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.path == "/ask":
            Handler.num_asked += 1
            self._answer(503 if Handler.num_asked % 50 == 0 else 200, "{}")
        else:
            lines = "".join(f"data: {json.dumps(event)}\n\n" for event in EVENTS)
            self._answer(200, f"{lines}data: [DONE]\n\n")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Handler.num_asked = 0
    Handler.bodies.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_first_token_rate_and_memory(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["service", "--url", f"{url}/", "--repeats", "4", "--warmup", "1"]
    assert benchmark.main([*argv, "--pid", str(os.getpid()), "--requests", "200"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["what"], report["decoder"], report["num_adapters"]) == ("service", "fast", 1)
    assert (report["num_warmups"], report["question_words"]) == (1, 30)
    assert set(report["first_token_s"]) == {"n", "median", "p90", "max"}
    assert report["tokens_per_s"]["n"] == 4
    memory = report["memory"]
    assert (memory["num_requests"], memory["num_failed"]) == (200, 4)
    assert [count for count, _ in memory["samples"]] == [0, 50, 100, 150, 200]
    assert memory["pss_mib_before"] > 0


def test_the_memory_run_has_a_least_length(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["service", "--requests", "199"])
    assert "a whole number from 200 is expected" in capsys.readouterr().err


def test_groundings_are_timed_in_turn(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["service", "--url", url, "--repeats", "2", "--warmup", "0"]
    assert benchmark.main([*argv, "--grounding", "off", "cite"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(report["groundings"]) == ["off", "cite"]
    for found in report["groundings"].values():
        assert found["tokens"] == 5
        assert found["first_token_s"]["n"] == found["whole_answer_s"]["n"] == 24
    asked = [body.get("grounding") for body in Handler.bodies if "grounding" in body]
    assert asked == ["off", "cite"] * 24
