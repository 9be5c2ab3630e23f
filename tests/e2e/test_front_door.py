"""Keys, limits and rude clients on real Ray Serve. The decoder is a stand-in that sleeps."""

import asyncio
import contextlib
import io
import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from deployments.api.access.api_keys import KeyStore, now
from deployments.keys import main as keys_command
from tests.deployments.api.access.malformed import RawRequest, malformed

CHAT = {"messages": [{"role": "user", "content": "a red rash"}], "stream": True}
NUM_READERS = 20
SMALL_BUFFER = 4096


def answer_of(response: httpx.Response) -> str:
    text: str = response.json()["answer"]
    return text


@pytest.fixture(scope="module")
def state(door_state: Path) -> Path:
    return door_state


@pytest.fixture(scope="module")
def clinic(door: httpx.Client) -> httpx.Client:
    return door


@pytest.fixture(scope="module")
def key(state: Path, clinic: httpx.Client) -> dict[str, str]:
    """For tests that leave it as it was."""
    return new_key(state, clinic)


def new_key(state: Path, clinic: httpx.Client, *options: str) -> dict[str, str]:
    """Made by the command line; returned once both router replicas know it."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert keys_command(["--state_dir", str(state), "create", *options]) == 0
    headers = {"authorization": f"Bearer {printed.getvalue().strip()}"}
    assert seconds_until_always(clinic, headers, 200) < 2
    return headers


def seconds_until_always(clinic: httpx.Client, headers: dict[str, str], status: int) -> float:
    """Until twelve requests in a row, which both router replicas share, have this status."""
    started = time.monotonic()
    in_a_row, first_of_row = 0, started
    while in_a_row < 12:
        assert time.monotonic() - started < 10
        if clinic.get("/v1/models", headers=headers).status_code == status:
            first_of_row = time.monotonic() if not in_a_row else first_of_row
            in_a_row += 1
        else:
            in_a_row = 0
    return first_of_row - started


def running_and_waiting(clinic: httpx.Client) -> tuple[int, int]:
    report = clinic.get("/readyz").json()
    return report["rows_running"], report["requests_waiting"]


def wait_until_idle(clinic: httpx.Client, timeout_s: float = 5) -> float:
    started = time.monotonic()
    while running_and_waiting(clinic) != (0, 0):
        assert time.monotonic() - started < timeout_s, running_and_waiting(clinic)
        time.sleep(0.02)
    return time.monotonic() - started


def test_a_key_works_and_is_revoked_on_every_router_replica_within_two_seconds(
    clinic: httpx.Client, state: Path
) -> None:
    assert clinic.post("/ask", json={"question": "x"}).status_code == 401
    key = new_key(state, clinic)
    asked = clinic.post("/ask", json={"question": "a rash", "max_tokens": 3}, headers=key)
    assert asked.status_code == 200
    assert answer_of(asked) == "aaa"
    key_id = key["authorization"].split("-")[1]
    store = KeyStore(state)
    store.change(
        lambda records: [
            r.model_copy(update={"revoked": now()}) if r.id == key_id else r for r in records
        ]
    )
    assert seconds_until_always(clinic, key, 401) < 2


def test_a_broken_key_file_keeps_the_keys_and_shows_in_readiness(
    clinic: httpx.Client, state: Path, key: dict[str, str]
) -> None:
    path = KeyStore(state).path
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    try:
        time.sleep(1.5)
        problems = {clinic.get("/readyz").json()["access"]["key_problem"] for _ in range(8)}
        assert all("cut off" in str(problem) for problem in problems), problems
        assert clinic.get("/v1/models", headers=key).status_code == 200
    finally:
        path.write_bytes(good)
    time.sleep(1.5)
    assert clinic.get("/readyz").json()["access"] == {"mode": "keys", "key_problem": None}


def test_a_limit_is_a_429_with_retry_after(clinic: httpx.Client, state: Path) -> None:
    headers = new_key(state, clinic, "--requests_per_minute", "30")
    started = time.monotonic()
    seen = [clinic.get("/v1/models", headers=headers) for _ in range(80)]
    limited = [response for response in seen if response.status_code == 429]
    # 30 for both router replicas, less those that the wait for the key took.
    assert len(limited) >= 50 - (time.monotonic() - started) / 2
    assert int(limited[0].headers["retry-after"]) >= 1
    assert {response.status_code for response in seen} <= {200, 429}
    assert limited[0].headers["x-content-type-options"] == "nosniff"


def open_stream(
    clinic: httpx.Client, headers: dict[str, str], max_tokens: int, *, stream: bool = True
) -> socket.socket:
    """A connection that asked for a stream (or a whole answer) and has read nothing; its window
    is small."""
    url = urlsplit(str(clinic.base_url))
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    connection.settimeout(60)
    connection.connect((url.hostname, url.port))
    body = json.dumps({**CHAT, "stream": stream, "max_tokens": max_tokens}).encode()
    lines = [f"POST {url.path.rstrip('/')}/v1/chat/completions HTTP/1.1", f"host: {url.netloc}"]
    lines += ["content-type: application/json", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    return connection


def first_token_s(clinic: httpx.Client, headers: dict[str, str]) -> float:
    started = time.monotonic()
    body = {**CHAT, "max_tokens": 2}
    with clinic.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        for line in response.iter_lines():
            if '"content": "a' in line:
                return time.monotonic() - started
    raise AssertionError("no token came")


def read_to_the_end(connection: socket.socket) -> bytes:
    content = b""
    while not content.endswith(b"0\r\n\r\n"):
        piece = connection.recv(1 << 16)
        assert piece, "the stream was cut off"
        content += piece
    return content


def test_slow_readers_hold_no_rows_and_get_everything_in_the_end(
    clinic: httpx.Client, key: dict[str, str]
) -> None:
    """Their answers are longer than their windows; the engine finishes them all the same."""
    alone_s = sorted(first_token_s(clinic, key) for _ in range(9))[4]
    readers = [open_stream(clinic, key, max_tokens=800) for _ in range(NUM_READERS)]
    started = time.monotonic()
    while running_and_waiting(clinic) == (0, 0):
        assert time.monotonic() - started < 10, "the readers' requests did not arrive"
        time.sleep(0.02)
    wait_until_idle(clinic, timeout_s=60)  # nobody has read a byte
    idle_at = time.monotonic()
    while sorted(first_token_s(clinic, key) for _ in range(9))[4] >= 2 * alone_s + 0.05:
        assert time.monotonic() - idle_at < 10, "what was sent to the readers still costs others"
    with ThreadPoolExecutor(NUM_READERS) as pool:
        contents = list(pool.map(read_to_the_end, readers))
    for reader, content in zip(readers, contents, strict=True):
        reader.close()
        assert content.startswith(b"HTTP/1.1 200")
        assert b"data: [DONE]" in content
        assert b'"finish_reason": "length"' in content


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row_at_once(
    clinic: httpx.Client, key: dict[str, str], stream: bool
) -> None:
    readers = [open_stream(clinic, key, max_tokens=4000, stream=stream) for _ in range(8)]
    started = time.monotonic()
    while running_and_waiting(clinic)[0] < 8:
        assert time.monotonic() - started < 5
        time.sleep(0.02)
    for reader in readers:
        reader.close()
    took_s = wait_until_idle(clinic)
    assert took_s < 3  # an answer of 4,000 tokens would take 40 s


def test_half_open_clients_hold_nothing(clinic: httpx.Client, key: dict[str, str]) -> None:
    """Half a head never reaches us; half a body is a 408 after `body_timeout_s` at the latest, and
    without a key it is a 401 at once."""
    url = urlsplit(str(clinic.base_url))
    address = (url.hostname, url.port)
    head = f"POST {url.path.rstrip('/')}/ask HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n"
    silent = [socket.create_connection(address) for _ in range(20)]
    for connection in silent[:10]:
        connection.sendall(head.encode()[:40])
    keyless = [socket.create_connection(address, timeout=5) for _ in range(5)]
    for connection in keyless:
        connection.sendall(head.encode() + b'\r\n{"question": ')
        assert connection.recv(100).startswith(b"HTTP/1.1 401")
    wait_until_idle(clinic)  # /readyz says what was so within the last second
    asked = clinic.post("/ask", json={"question": "a rash", "max_tokens": 1}, headers=key)
    assert asked.status_code == 200
    for connection in (*silent, *keyless):
        connection.close()


def raw_reply(clinic: httpx.Client, lines: list[str], body: bytes = b"") -> tuple[bytes, bytes]:
    """Head and body of what comes back on a connection until the server closes it."""
    url = urlsplit(str(clinic.base_url))
    with socket.create_connection((url.hostname, url.port), timeout=30) as connection:
        connection.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        content = b""
        while piece := connection.recv(1 << 16):
            content += piece
    head, _, rest = content.partition(b"\r\n\r\n")
    return head.lower(), rest


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/ask", "/v1/chat/completions"])
def test_a_client_of_http_1_0_gets_no_chunks(
    clinic: httpx.Client, key: dict[str, str], path: str, stream: bool
) -> None:
    question = {"question": "a red rash"} if path == "/ask" else CHAT
    body = json.dumps({**question, "stream": stream, "max_tokens": 3}).encode()
    target = urlsplit(str(clinic.base_url)).path.rstrip("/") + path
    lines = [f"POST {target} HTTP/1.0", f"authorization: {key['authorization']}"]
    lines += ["content-type: application/json", f"content-length: {len(body)}"]
    head, content = raw_reply(clinic, lines, body)
    assert b" 200 " in head.splitlines()[0]
    assert b"transfer-encoding" not in head
    assert b"content-length: %d" % len(content) in head
    assert b"connection: close" in head
    if not stream:
        json.loads(content)
    else:
        assert content.startswith(b"event: route" if path == "/ask" else b"data: ")
        assert content.endswith(b"\n\n")


@pytest.mark.parametrize(
    "given",
    ["{b2f7e0c8-0d5c-4c6d-9f3e-0c5f4a1d2e3f}", "Root=1-67891233-abcdef", "a" * 200, "", "é", "a b"],
)
def test_a_foreign_request_id_is_replaced(clinic: httpx.Client, given: str) -> None:
    """A load balancer's health check, for one: Serve's proxy would send its id back."""
    path = urlsplit(str(clinic.base_url)).path.rstrip("/")
    lines = [f"GET {path}/healthz HTTP/1.1", "host: x", "connection: close"]
    head, content = raw_reply(clinic, [*lines, f"x-request-id: {given}"])
    assert b" 200 " in head.splitlines()[0], head
    assert json.loads(content) == {"status": "ok"}
    ids = [line.split(b": ")[1] for line in head.splitlines() if line.startswith(b"x-request-id")]
    assert len(ids) == 1
    assert len(ids[0]) == 32
    session, _ = raw_reply(clinic, [*lines, "x-session-id: é"])
    assert b" 200 " in session.splitlines()[0], "a 500 of Serve's proxy"


def test_malformed_requests_over_real_sockets(clinic: httpx.Client, key: dict[str, str]) -> None:
    """uvicorn refuses some by itself (400), and closes; none is a 5xx and none holds a row."""
    requests = [r for r in malformed(7, 500) if len(b"".join(r.pieces)) < 100_000][:300]
    dice = random.Random(7)

    async def everything() -> list[int | None]:
        limit = asyncio.Semaphore(8)

        async def one(request: RawRequest) -> int | None:
            async with limit:
                return await over_socket(clinic, request, key, dice)

        return await asyncio.gather(*map(one, requests))

    statuses = asyncio.run(everything())
    assert not [status for status in statuses if status is not None and status >= 500], statuses
    assert sum(status is not None for status in statuses) > 200
    wait_until_idle(clinic)
    asked = clinic.post("/ask", json={"question": "a rash", "max_tokens": 1}, headers=key)
    assert asked.status_code == 200


async def over_socket(
    clinic: httpx.Client, request: RawRequest, key: dict[str, str], dice: random.Random
) -> int | None:
    """Status of the answer; None when the server closed without one, or the client left."""
    url = urlsplit(str(clinic.base_url))
    target = (url.path.rstrip("/") + request.path).encode("utf-8", "surrogatepass")
    target += b"?" + request.query if request.query else b""
    lines = [request.method.encode() + b" " + target + b" HTTP/1.1", b"host: x"]
    lines += [f"{name}: {value}".encode() for name, value in key.items()]
    lines += [name + b": " + value for name, value in request.headers]
    body = b"".join(request.pieces)
    if dice.random() < 0.2:  # a length that is not the body's
        lines.append(b"content-length: %d" % dice.choice((0, 1, len(body) + 10)))
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        if request.leaves:
            await asyncio.sleep(0.05)
            return None
        head = await asyncio.wait_for(reader.readline(), 3)
        return int(head.split(b" ")[1]) if head.startswith(b"HTTP/1.1 ") else None
    except (TimeoutError, ConnectionError):  # it waits for the rest of a body that never comes
        return None
    finally:
        writer.close()


@pytest.mark.long
def test_half_a_body_with_a_key_is_a_408_and_half_a_head_is_nobody_s(
    clinic: httpx.Client, key: dict[str, str]
) -> None:
    """uvicorn waits for the rest of a head without end, but at no cost for the router."""
    url = urlsplit(str(clinic.base_url))
    address = (url.hostname, url.port)
    head = f"POST {url.path.rstrip('/')}/ask HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n"
    head += f"content-type: application/json\r\nauthorization: {key['authorization']}\r\n"
    half_head = socket.create_connection(address, timeout=1)
    half_head.sendall(head.encode())
    half_body = socket.create_connection(address, timeout=30)
    half_body.sendall(head.encode() + b'\r\n{"question": ')
    started = time.monotonic()
    content = half_body.recv(1 << 16)
    took_s = time.monotonic() - started
    assert content.startswith(b"HTTP/1.1 408")
    assert 14 < took_s < 17  # the default of body_timeout_s is 15
    while piece := half_body.recv(1 << 16):  # and then the server closes
        content += piece
    assert b'"body_timeout"' in content
    with pytest.raises(TimeoutError):  # neither answered nor closed
        half_head.recv(1)
    half_head.close()
    half_body.close()
