"""A seeded generator of requests that no client should send, and a way to send them over ASGI."""

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.types import ASGIApp, Message

POSTS = ("/ask", "/route", "/v1/chat/completions", "/v1/completions", "/v1/responses")
GETS = ("/v1/models", "/healthz", "/readyz")
METHODS = ("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW", "get", "POST")
ODD_TEXT = (
    "\ud800", "\x00", "\u202e", "\ufeff", "é" * 50, "a" * 9000, "\n\n\n", " ", "", "\U0001f9ec" * 9,
    "<script>", "{{7*7}}", "'; DROP TABLE x; --", "%s%n%x", "../../etc/passwd", "\x1b[2J", "ﷺ" * 40,
)  # fmt: skip
ODD_JSON = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "-0", "1e-400", "0x10", "1_0",
    "null", "true", "[]", "{}", "[[]]", '""', "0", "-1", "1.5", "9007199254740993", '"1"', "[null]",
    '{"a": {"b": []}}', "18446744073709551616", '"\\ud83d"',
)  # fmt: skip
ODD_PATHS = (
    "/v1/../ask", "//ask", "/ask/", "/ask\x00", "/%2e%2e/", "/v1/chat/completions/x", "/ASK", "/v1",
    "/v1/models/x", "/static/../../etc/passwd", "/v1/adapters", "/v1/operator/x", "/é", "*", "/ ",
)  # fmt: skip


@dataclass(frozen=True)
class RawRequest:
    """`pieces` of the body; `leaves`: the client goes away before its body is complete
    ("in the body"), or once the answer has begun ("in the answer")."""

    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    pieces: tuple[bytes, ...]
    query: bytes = b""
    leaves: str = ""
    recipe: str = ""


@dataclass
class RawResponse:
    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int | None:
        starts = [m for m in self.messages if m["type"] == "http.response.start"]
        assert len(starts) <= 1, "two responses to one request"
        return starts[0]["status"] if starts else None

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages[1:])

    @property
    def is_whole(self) -> bool:
        return bool(self.messages) and not self.messages[-1].get("more_body", False)


def malformed(seed: int, number: int) -> Iterator[RawRequest]:
    """`number` requests; the same for the same seed."""
    dice = random.Random(seed)
    for _ in range(number):
        recipe = dice.choice(RECIPES)
        yield replace(recipe(dice), recipe=recipe.__name__)


def good_body(dice: random.Random, path: str) -> dict[str, Any]:
    text = dice.choice(("a red rash", "my heart races", "tumour?", "Bonjour docteur"))
    if path == "/ask":
        return {"question": text, "max_tokens": dice.randint(1, 4)}
    if path == "/route":
        return {"questions": [text] * dice.randint(1, 3)}
    common = {"model": "auto", "max_tokens": dice.randint(1, 4), "stream": dice.random() < 0.5}
    if path == "/v1/completions":
        return {**common, "prompt": text}
    if path == "/v1/responses":
        return {"model": "auto", "stream": dice.random() < 0.5, "input": text}
    return {**common, "messages": [{"role": "user", "content": text}]}


def _post(dice: random.Random, body: bytes, path: str | None = None, **more: Any) -> RawRequest:
    headers = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
    chosen = path or dice.choice(POSTS)
    return RawRequest("POST", chosen, headers, _in_pieces(dice, body), **more)


def _in_pieces(dice: random.Random, body: bytes) -> tuple[bytes, ...]:
    if dice.random() < 0.7 or len(body) < 2:
        return (body,)
    cut = dice.randrange(len(body))
    return (body[:cut], body[cut:])


def _good(dice: random.Random) -> tuple[str, bytes]:
    path = dice.choice(POSTS)
    return path, json.dumps(good_body(dice, path)).encode()


def cut_off_json(dice: random.Random) -> RawRequest:
    path, body = _good(dice)
    return _post(dice, body[: dice.randrange(len(body))], path)


def flipped_bytes(dice: random.Random) -> RawRequest:
    path, body = _good(dice)
    changed = bytearray(body)
    for _ in range(dice.randint(1, 4)):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return _post(dice, bytes(changed), path)


def noise(dice: random.Random) -> RawRequest:
    return _post(dice, dice.randbytes(dice.randint(0, 400)))


def bad_utf8(dice: random.Random) -> RawRequest:
    path, body = _good(dice)
    bad = dice.choice((b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"))
    at = body.index(b": ") + 3
    return _post(dice, body[:at] + bad + body[at:], path)


def wrong_value(dice: random.Random) -> RawRequest:
    """One value of a good body is something else, or one key is new, or one is there twice."""
    path = dice.choice(POSTS)
    body = good_body(dice, path)
    key = dice.choice([*body, "stop", "temperature", "seed", "top_p", "user", "n", "tools", "zzz"])
    rest = {name: value for name, value in body.items() if name != key or dice.random() < 0.2}
    odd = dice.choice(ODD_JSON)
    if dice.random() < 0.3:
        odd = json.dumps(dice.choice(ODD_TEXT))
    joined = json.dumps(rest)[:-1] + (", " if rest else "") + f'"{key}": {odd}}}'
    return _post(dice, joined.encode(), path)


def wrong_message(dice: random.Random) -> RawRequest:
    odd = [json.loads(dice.choice(('{"role": "user"}', "[]", "null", '{"role": "tool"}')))]
    good = [{"role": "user", "content": dice.choice(ODD_TEXT)}]
    parts = [{"role": "user", "content": [{"type": "text", "text": dice.choice(ODD_TEXT)}]}]
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    messages = dice.choice((odd, good, parts, image, good + odd, [], good * 300))
    return _post(dice, json.dumps({"messages": messages, "max_tokens": 2}).encode(), POSTS[2])


def odd_text(dice: random.Random) -> RawRequest:
    text = dice.choice(ODD_TEXT) + dice.choice(("", "rash")) + dice.choice(ODD_TEXT)
    return _post(dice, json.dumps({"question": text, "max_tokens": 2}).encode(), "/ask")


def nested_bomb(dice: random.Random) -> RawRequest:
    depth = dice.choice((100, 1000, 20_000, 120_000))
    opening, closing = dice.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"[", b"")))
    body = opening * depth + (b"1" if closing else b"") + closing * depth
    return _post(dice, body)


def too_large(dice: random.Random) -> RawRequest:
    body = b'{"question": "' + b"a" * dice.choice((262_144, 400_000)) + b'"}'
    request = _post(dice, body)
    if dice.random() < 0.5:  # says nothing of its length, or lies
        lie = dice.choice((b"10", b"-1", b"abc", b"99999999999999999999"))
        return replace(request, headers=(request.headers[0], (b"content-length", lie)))
    return request


def junk_headers(dice: random.Random) -> RawRequest:
    path, body = _good(dice)
    request = _post(dice, body, path)
    junk = [
        (dice.choice(NAMES), dice.choice((dice.randbytes(20), b"", b"," * 50, b"\xff\xfe", b"0")))
        for _ in range(dice.choice((1, 3, 10, 200)))
    ]
    kept = request.headers if dice.random() < 0.7 else request.headers[1:]
    return replace(request, headers=(*kept, *junk))


NAMES = (
    b"x-request-id", b"content-type", b"content-length", b"authorization", b"x-api-key", b"host",
    b"transfer-encoding", b"expect", b"accept", b"cookie", b"origin", b"range", b"x", b"upgrade",
    b"content-encoding", b"x-forwarded-for", b"connection", b"if-none-match",
)  # fmt: skip


def wrong_type(dice: random.Random) -> RawRequest:
    path, body = _good(dice)
    kind = dice.choice(
        (b"text/plain", b"", b"application/json; charset=utf-16", b"multipart/x", b"\xff")
    )
    return replace(_post(dice, body, path), headers=((b"content-type", kind),))


def wrong_method(dice: random.Random) -> RawRequest:
    path = dice.choice((*POSTS, *GETS, "/"))
    return replace(_post(dice, _good(dice)[1], path), method=dice.choice(METHODS))


def odd_path(dice: random.Random) -> RawRequest:
    query = dice.choice((b"", b"a=%00&b", b"\xff" * 9, b"q=" + b"x" * 9000))
    path = dice.choice((*ODD_PATHS, "/" + "x" * 9000))
    return replace(_post(dice, _good(dice)[1], path), method=dice.choice(METHODS), query=query)


def leaves_in_the_body(dice: random.Random) -> RawRequest:
    path, body = _good(dice)
    cut = dice.randrange(len(body))
    return replace(_post(dice, body, path), pieces=(body[:cut],), leaves="in the body")


def leaves_in_the_answer(dice: random.Random) -> RawRequest:
    path = dice.choice(("/ask", "/v1/chat/completions"))
    body = {**good_body(dice, path), "max_tokens": 64}
    return _post(dice, json.dumps(body).encode(), path, leaves="in the answer")


def good(dice: random.Random) -> RawRequest:
    path, body = _good(dice)
    return _post(dice, body, path)


RECIPES: tuple[Callable[[random.Random], RawRequest], ...] = (
    cut_off_json, flipped_bytes, noise, bad_utf8, wrong_value, wrong_value, wrong_message, odd_text,
    nested_bomb, too_large, junk_headers, wrong_type, wrong_method, odd_path, leaves_in_the_body,
    leaves_in_the_answer, good,
)  # fmt: skip


async def send(app: ASGIApp, request: RawRequest) -> RawResponse:
    """One request over ASGI, as a server would pass it on."""
    response, begun = RawResponse(), asyncio.Event()
    incoming: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": True} for piece in request.pieces
    ]
    if request.leaves != "in the body":
        incoming[-1]["more_body"] = False

    async def receive() -> Message:
        if incoming:
            return incoming.pop(0)
        if request.leaves == "in the answer":
            await begun.wait()
        elif not request.leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send_message(message: Message) -> None:
        response.messages.append(message)
        begun.set()
        await asyncio.sleep(0)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "path": request.path,
        "raw_path": request.path.encode(),
        "root_path": "",
        "query_string": request.query,
        "headers": list(request.headers),
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "scheme": "http",
    }
    await app(scope, receive, send_message)
    return response
