"""The launcher with a Ray cluster of its own: stopping drains, lost daemons and proxies count."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from deployments.startup.processes import ProcessTree
from tests.e2e.conftest import ROOT, free_port

pytestmark = [pytest.mark.long, pytest.mark.alone]

START_TIMEOUT_S = 180
TOKENS = 3000


class Launched:
    """`make serve` of a tiny clinic; its output is read to the end."""

    def __init__(self, folder: Path, base: Path, catalog: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        engine = {"max_rows": 4, "max_input_tokens": 64, "max_output_tokens": TOKENS}
        args = {
            "base_model": str(base),
            "adapters": str(catalog),
            "state_dir": str(folder / "state"),
            "device": "cpu",
            "engine": {**engine, "default_output_tokens": 8, "cpu_threads": 1},
        }
        app = {"name": "clinic", "route_prefix": "/", "import_path": "deployments.app:build"}
        config = {
            "http_options": {"host": "127.0.0.1", "port": int(self.url.rpartition(":")[2])},
            "applications": [{**app, "args": args}],
        }
        self.temp = Path(f"/tmp/r{os.getpid()}")  # short: it is part of sockets' paths
        self.temp.mkdir(exist_ok=True)
        inherited = {k: v for k, v in os.environ.items() if k != "RAY_TMPDIR"}
        file = folder / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        self.log = folder / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deployments.launch", str(file)],
                cwd=ROOT,
                env={**inherited, "TMPDIR": str(self.temp), "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.tree = ProcessTree(self.process.pid)
        deadline = time.monotonic() + START_TIMEOUT_S
        while "launch: ready" not in self.said():
            assert self.process.poll() is None, self.said()[-2000:]
            assert time.monotonic() < deadline, self.said()[-2000:]
            time.sleep(0.5)
        self.tree.refresh()

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def pid_of(self, title: str) -> int:
        """The process that Ray calls this."""
        for pid in self.tree.alive():
            process = psutil.Process(pid)
            if title in (process.name(), *process.cmdline()[:1]):
                return pid
        pytest.fail(f"no {title} is running")

    def end(self, timeout: float) -> int:
        return self.process.wait(timeout)


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Launched]:
    from tests.tiny_models import make_catalog, make_tiny_llama

    base = make_tiny_llama(tmp_path / "base", max_position_embeddings=4096)
    (tmp_path / "seed").mkdir()
    make_catalog(tmp_path / "seed", base, prompt_format="chat", adapters={"derm": "dermatology"})
    started = Launched(tmp_path, base, tmp_path / "seed")
    yield started
    started.tree.kill()
    started.process.wait(10)
    shutil.rmtree(started.temp, ignore_errors=True)


def stream(url: str) -> tuple[int, str]:
    body = {
        "model": "base",
        "messages": [{"role": "user", "content": "a red rash"}],
        "max_tokens": TOKENS,
        "min_tokens": TOKENS,
        "stream": True,
    }
    try:
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=90)
    except httpx.HTTPError as error:
        return 0, type(error).__name__
    return reply.status_code, reply.text


def test_stopping_lets_answers_finish_after_the_proxy_was_replaced(launched: Launched) -> None:
    private = launched.temp / f"polyclinic-{os.getuid()}"
    assert list(private.glob("ray/session_2*")), "Ray's sessions are elsewhere"
    assert private.stat().st_mode & 0o777 == 0o700
    os.kill(launched.pid_of("ray::ProxyActor"), signal.SIGKILL)
    killed = time.monotonic()
    while True:
        try:
            if httpx.get(f"{launched.url}/readyz", timeout=2).status_code == 200:
                break
        except httpx.HTTPError:
            time.sleep(0.2)
        assert time.monotonic() - killed < 25, "Serve's own period would take 28 s"
    outage_s = time.monotonic() - killed
    launched.tree.refresh()
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(stream, launched.url) for _ in range(4)]
        time.sleep(1)
        assert not any(future.done() for future in streams), "too fast: nothing is tested"
        launched.process.send_signal(signal.SIGTERM)
        refused = wait_for_refusal(launched.url)
        assert refused.json()["error"]["code"] == "draining"
        assert refused.headers["retry-after"] == "10"
        assert httpx.get(f"{launched.url}/readyz").status_code == 503
        answered = [future.result() for future in streams]
    assert [status for status, _ in answered] == [200] * 4
    assert all(text.endswith("data: [DONE]\n\n") for _, text in answered)
    assert not any('"error"' in text for _, text in answered)
    assert launched.end(30) == 0
    assert launched.tree.alive() == []
    print(f"outage after the proxy's death: {outage_s:.1f} s")


def wait_for_refusal(url: str) -> httpx.Response:
    deadline = time.monotonic() + 5
    while True:
        reply = httpx.post(f"{url}/ask", json={"question": "a rash", "max_tokens": 1}, timeout=30)
        if reply.status_code == 503:
            return reply
        assert time.monotonic() < deadline


@pytest.mark.parametrize("daemon", ["raylet", "gcs_server"])
def test_without_a_daemon_of_ray_it_ends_and_says_why(launched: Launched, daemon: str) -> None:
    """Answers in progress finish; without the GCS nobody waits for them."""
    with ThreadPoolExecutor(2) as pool:
        streams = [pool.submit(stream, launched.url) for _ in range(2)]
        time.sleep(1)
        os.kill(launched.pid_of(daemon), signal.SIGKILL)
        answered = [future.result() for future in streams]
    assert launched.end(25) == 1
    assert f"launch: Ray's {daemon} (pid " in launched.said()
    assert launched.tree.alive() == []
    statuses = [status for status, text in answered if text.endswith("data: [DONE]\n\n")]
    assert statuses == [200] * 2 or (daemon == "gcs_server" and set(statuses) <= {200})


@pytest.mark.parametrize("daemon", ["raylet", "gcs_server"])
def test_a_daemon_that_is_stopped_counts_as_one_that_has_ended(
    launched: Launched, daemon: str
) -> None:
    """Nothing could be started any more, and /readyz would be answered for minutes."""
    stopped = launched.pid_of(daemon)
    os.kill(stopped, signal.SIGSTOP)
    assert launched.end(60) == 1
    assert f"launch: pid {stopped} was stopped for 15 s and is killed" in launched.said()
    assert f"launch: Ray's {daemon} (pid {stopped}) has ended" in launched.said()
    assert launched.tree.alive() == []


def test_a_proxy_that_is_stopped_is_killed_and_replaced(launched: Launched) -> None:
    stopped = launched.pid_of("ray::ProxyActor")
    os.kill(stopped, signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while psutil.pid_exists(stopped) or not is_ready(launched.url):
        assert time.monotonic() < deadline, launched.said()[-2000:]
        time.sleep(0.5)
    assert f"launch: pid {stopped} was stopped for 15 s and is killed" in launched.said()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_service_that_hangs_is_given_up(launched: Launched) -> None:
    """Whatever takes its place hangs, too."""
    deadline = time.monotonic() + 90
    while launched.process.poll() is None:
        assert time.monotonic() < deadline, launched.said()[-2000:]
        for process in launched.tree.titled(("ray::ProxyActor", "ray::ServeController")):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        time.sleep(0.1)
    assert launched.process.returncode == 1
    assert "launch: /readyz has not been answered for" in launched.said()
    assert launched.tree.alive() == []
