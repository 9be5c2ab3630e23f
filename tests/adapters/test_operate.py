"""`python -m adapters` against a server that notes what it was asked, over real HTTP."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from adapters.__main__ import KEY_VARIABLE, main

ADAPTER = {
    "name": "derm",
    "specialty": "dermatology",
    "state": "canary",
    "version": "1",
    "canary": {"version": "2", "weight": 0.1},
    "pinned": True,
    "versions": [{"version": v, "prompt_format": f} for v, f in (("1", None), ("2", "raw"))],
    "replicas": {"r1": {"1": {"tier": "device", "answers": 3, "load_s": 0.1, "error": None}}},
}


class Noted:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any]] = []
        self.keys: list[str | None] = []
        self.status = 200
        self.reply: Any = {
            "revision": 4,
            "replicas": 2,
            "unconfirmed": {},
            "adapter": ADAPTER,
        }


@pytest.fixture
def server() -> Iterator[tuple[str, Noted]]:
    noted = Noted()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            noted.calls.append((self.command, self.path, body))
            noted.keys.append(self.headers.get("authorization"))
            content = json.dumps(noted.reply).encode()
            self.send_response(noted.status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", noted
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.mark.parametrize(
    ("command", "call"),
    [
        (
            "add derm --source /a --version 2 --canary 0.1",
            (
                "POST",
                "/v1/adapters",
                {
                    "name": "derm",
                    "source": "/a",
                    "version": "2",
                    "state": "canary",
                    "canary_weight": 0.1,
                },
            ),
        ),
        (
            "add onco --source org/x --version 1 --specialty oncology --disabled",
            (
                "POST",
                "/v1/adapters",
                {
                    "name": "onco",
                    "source": "org/x",
                    "version": "1",
                    "specialty": "oncology",
                    "state": "disabled",
                },
            ),
        ),
        (
            "add derm --source /a --version 2 --prompt_format raw",
            (
                "POST",
                "/v1/adapters",
                {"name": "derm", "source": "/a", "version": "2", "prompt_format": "raw"},
            ),
        ),
        ("update derm --promote", ("PATCH", "/v1/adapters/derm", {"promote": True})),
        ("update derm --version 1", ("PATCH", "/v1/adapters/derm", {"version": "1"})),
        (
            "update derm --canary 0.5 --canary_version 2",
            ("PATCH", "/v1/adapters/derm", {"canary_weight": 0.5, "canary_version": "2"}),
        ),
        (
            "update derm --disable --reason recalled",
            ("PATCH", "/v1/adapters/derm", {"state": "disabled", "reason": "recalled"}),
        ),
        ("update derm --pin", ("PATCH", "/v1/adapters/derm", {"pinned": True})),
        ("update derm --unpin", ("PATCH", "/v1/adapters/derm", {"pinned": False})),
        (
            "update derm --pin --reason x --canary_version 2",  # the server says what is wrong
            (
                "PATCH",
                "/v1/adapters/derm",
                {"pinned": True, "reason": "x", "canary_version": "2"},
            ),
        ),
        (
            "add derm --source /a --version 2 --pin",
            (
                "POST",
                "/v1/adapters",
                {"name": "derm", "source": "/a", "version": "2", "pinned": True},
            ),
        ),
        ("update derm --activate", ("PATCH", "/v1/adapters/derm", {"state": "active"})),
        ("rollback derm", ("POST", "/v1/adapters/derm/rollback", None)),
        ("rm a/b", ("DELETE", "/v1/adapters/a%2Fb", None)),
    ],
)
def test_each_command_is_one_call(
    command: str,
    call: tuple[str, str, Any],
    server: tuple[str, Noted],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, noted = server
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    assert main(["--url", url, *command.split()]) == 0
    assert noted.calls == [call]
    assert noted.keys == ["Bearer secret"]
    assert "revision 4: canary, version 1; 2 model replicas" in capsys.readouterr().out


def test_an_unconfirmed_change_is_exit_code_1(
    server: tuple[str, Noted], capsys: pytest.CaptureFixture[str]
) -> None:
    url, noted = server
    noted.status = 202
    noted.reply["unconfirmed"] = {"r2": "out of memory"}
    assert main(["--url", url, "rollback", "derm"]) == 1
    assert "not confirmed by r2: out of memory" in capsys.readouterr().err


def test_a_refusal_lists_every_problem(
    server: tuple[str, Noted], capsys: pytest.CaptureFixture[str]
) -> None:
    url, noted = server
    noted.status = 422
    noted.reply = {"error": {"message": "a; b", "problems": ["a", "b"]}}
    assert main(["--url", url, "rm", "derm"]) == 2
    assert capsys.readouterr().err == "adapters: a\nadapters: b\n"


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "http://127.0.0.1:9", "ls"]) == 2
    assert "is it running?" in capsys.readouterr().err


def test_ls_and_verify(server: tuple[str, Noted], capsys: pytest.CaptureFixture[str]) -> None:
    url, noted = server
    noted.reply = {"revision": 4, "replicas": ["r1"], "unconfirmed": {}, "adapters": [ADAPTER]}
    assert main(["--url", url, "ls"]) == 0
    out = capsys.readouterr().out
    assert "derm: dermatology, canary, version 1, 2 on trial for 10%, pinned" in out
    assert "r1: 1 on the device, 3 answers" in out
    assert main(["--url", url, "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["revision"] == 4
    assert main(["--url", url, "verify"]) == 0
    noted.reply["unconfirmed"] = {"r2": "is at revision 3"}
    assert main(["--url", url, "verify"]) == 1


def test_verify_of_a_folder(
    tiny_catalogs: dict[str, tuple[Path, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tiny_catalogs["llama"][1] / "weights" / "derm"
    assert main(["verify", str(folder)]) == 0
    assert "rank 4" in capsys.readouterr().out
    assert main(["verify", str(folder), "--base_model", "other"]) == 1
    assert "trained on" in capsys.readouterr().err
    assert main(["verify", str(tmp_path)]) == 2


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    program = """
import sys
from adapters import __main__ as operate
class Client:
    def __init__(self, url, key): ...
    def listed(self): return {"revision": 1, "replicas": [], "unconfirmed": {}, "adapters": []}
    def __getattr__(self, name): return lambda *a, **k: self.listed()
class Gone:
    def write(self, text): raise BrokenPipeError
    def flush(self): ...
    def fileno(self): return 1
sys.stdout = Gone()
sys.exit(operate.main(["ls"], make_client=Client))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, b"")
