"""Requests with a ledger: each one ends in exactly one outcome, and its text is compared.

answered   whole, with the text that this version gives
refused    503, 429 or 408 before an answer began, in our error shape
failed     an error of ours after an answer began, or another status than those
bare       an error that is not in our shape: the proxy's
cut        the connection ended without a last event
unreached  no connection
lost       no end at all until the deadline
doubled    two last events, or something after the last one
wrong      another id, or a text that the version named does not give

Random weights have near ties, which the size of a batch may decide. So a long answer is still right
if its first words are: other versions differ from the first word on. It is counted as `parted`.
"""

import asyncio
import itertools
import json
import math
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

OUTCOMES = (
    *("answered", "refused", "failed", "bare", "cut", "unreached"),
    *("lost", "doubled", "wrong"),
)
QUESTIONS = ("w7 w8 w9 rash", "w21 chest w22", "w33 w34 eye w35", "w101 w102 hip")
TOKENS = (24, 200)
MODES = ("ask", "ask_stream", "chat", "chat_stream")
_WITHOUT_ADAPTER = "psychiatry"  # a label of the shipped router: the base answers
_NUM_CERTAIN = 20  # words
REFUSALS = (408, 429, 503)
_REPEATED = re.compile(rb"request (\S+): its replica cannot answer")
TruthKey = tuple[str, str | None, int, int]  # adapter, version, question, tokens
Truth = dict[TruthKey, str]


@dataclass(slots=True)
class Sent:
    """One request, what came of it, and when (seconds of the run)."""

    id: str
    mode: str
    adapter: str  # asked for; "base" for none
    question: int
    tokens: int
    started_s: float = 0.0
    took_s: float = 0.0
    outcome: str = "lost"
    status: int | None = None
    code: str | None = None
    has_retry_after: bool = False
    version: str | None = None
    has_parted: bool = False
    text: str = field(default="", repr=False)

    @property
    def key(self) -> TruthKey:
        return self.adapter, self.version, self.question, self.tokens


def body_of(sent: Sent) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of a request."""
    stream, question = sent.mode.endswith("stream"), QUESTIONS[sent.question]
    if sent.mode.startswith("ask"):
        specialty = _WITHOUT_ADAPTER if sent.adapter == "base" else sent.adapter
        body = {"question": question, "specialty": specialty}
        return "/ask", {**body, "max_tokens": sent.tokens, "stream": stream}
    messages = [{"role": "user", "content": question}]
    chat = {"model": sent.adapter, "messages": messages, "max_tokens": sent.tokens}
    return "/v1/chat/completions", {**chat, "stream": stream}


async def send(
    session: aiohttp.ClientSession, url: str, sent: Sent, truth: Truth, *, deadline_s: float
) -> None:
    """Send one request and fill in its outcome."""
    began = time.perf_counter()
    try:
        async with asyncio.timeout(deadline_s):
            await _exchange(session, url, sent)
    except TimeoutError:
        sent.outcome = "lost"
    except aiohttp.ClientConnectorError as error:
        sent.outcome, sent.code = "unreached", type(error).__name__
    except (aiohttp.ClientError, OSError) as error:
        sent.outcome, sent.code = "cut", type(error).__name__
    sent.took_s = time.perf_counter() - began
    if sent.outcome == "answered" and truth:
        compare(sent, truth.get(sent.key, ""))


def compare(sent: Sent, expected: str) -> None:
    """Call the answer wrong if it is not the text that was recorded beforehand."""
    if sent.text == expected:
        return
    said, wanted = sent.text.split(), expected.split()
    if len(said) > _NUM_CERTAIN and said[:_NUM_CERTAIN] == wanted[:_NUM_CERTAIN]:
        sent.has_parted = True
        return
    sent.outcome, sent.code = "wrong", f"not the text of {sent.adapter} {sent.version}"


async def _exchange(session: aiohttp.ClientSession, url: str, sent: Sent) -> None:
    path, body = body_of(sent)
    headers = {"x-request-id": sent.id}
    async with session.post(url + path, json=body, headers=headers) as reply:
        sent.status = reply.status
        sent.has_retry_after = "retry-after" in reply.headers
        if reply.status == 200 and body["stream"]:
            lines = [line.decode().rstrip("\n") async for line in reply.content]
            judge_stream(sent, lines)
        else:
            judge_whole(sent, await reply.read())


def judge_whole(sent: Sent, content: bytes) -> None:
    """Fill in the outcome of a reply that is not a stream."""
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        sent.outcome, sent.code = "bare", content[:60].decode(errors="replace")
    elif sent.status != 200:
        _judge_error(sent, found.get("error"))
    elif sent.mode == "ask":
        _answered(sent, found["id"], found["adapter_version"], found["answer"])
    else:
        ours = found["polyclinic"]
        text = found["choices"][0]["message"]["content"]
        _answered(sent, ours["request_id"], ours["adapter_version"], text)


def _judge_error(sent: Sent, error: Any) -> None:
    if not isinstance(error, dict) or "code" not in error:
        sent.outcome, sent.code = "bare", "no error in our shape"
        return
    sent.code = str(error["code"])
    sent.outcome = "refused" if sent.status in REFUSALS else "failed"


def _answered(sent: Sent, request_id: str, version: str | None, text: str) -> None:
    sent.version, sent.text = version, text
    is_ours = request_id == sent.id
    sent.outcome, sent.code = ("answered", None) if is_ours else ("wrong", "another id")


def judge_stream(sent: Sent, lines: Iterable[str]) -> None:
    """Fill in the outcome of a stream of server-sent events, from its lines."""
    num_ends, event, failure = 0, None, None
    has_more = False
    for line in lines:
        if line.startswith("event: "):
            event = line.removeprefix("event: ")
        if not line.startswith("data: "):
            continue
        has_more = has_more or num_ends > 0
        if line == "data: [DONE]" or event == "done":
            num_ends += 1
            continue
        data = json.loads(line.removeprefix("data: "))
        if event == "error" or (event is None and "error" in data):
            num_ends, failure = num_ends + 1, data["error"]
        else:
            _take(sent, event, data)
    if num_ends > 1 or has_more:
        sent.outcome, sent.code = "doubled", f"{num_ends} ends"
    elif failure is not None:
        sent.outcome, sent.code = "failed", str(failure.get("code"))
    else:
        sent.outcome = "answered" if num_ends else "cut"


def _take(sent: Sent, event: str | None, data: Mapping[str, Any]) -> None:
    """Add what an event of a stream says to the answer."""
    if event == "route":
        sent.version = data["adapter_version"]
    elif event == "token":
        sent.text += data["text"]
    elif event is None:
        sent.version = data.get("polyclinic", {}).get("adapter_version", sent.version)
        for choice in data["choices"]:
            sent.text += choice["delta"].get("content") or ""


def repeated_in(log: Path, start: int) -> set[str]:
    """Return the ids of the questions that a router has asked another replica (model_client.py).

    Args:
        log: of Serve's console, read from byte `start` on.
    """
    with log.open("rb") as file:
        file.seek(start)
        return {found.decode() for found in _REPEATED.findall(file.read())}


def account(
    rows: list[Sent],
    windows: Sequence[tuple[float, float]] = (),
    repeated: Collection[str] = (),
) -> dict[str, Any]:
    """Return the ledger of a run: every request once; `during`: of those that began in `windows`,
    from and to which second of the run, and `others_during`: of these without `repeated`.

    Args:
        repeated: ids of those that a router asked once more, since their replica could not answer.
    """
    outcomes = Counter(row.outcome for row in rows)
    assert set(outcomes) <= set(OUTCOMES), "an outcome that nobody knows"
    assert sum(outcomes.values()) == len(rows), "a request without an outcome"
    took = sorted(row.took_s for row in rows if row.outcome == "answered")
    refused = [row for row in rows if row.outcome == "refused" and row.status != 408]
    reasons = Counter(
        f"{row.outcome} {row.status or '-'} {row.code}" for row in rows if row.outcome != "answered"
    )
    return {
        "sent": len(rows),
        **{outcome: outcomes[outcome] for outcome in OUTCOMES},
        "without_retry_after": sum(not row.has_retry_after for row in refused),
        "parted": sum(row.has_parted for row in rows),
        "p50_s": _percentile(took, 0.5),
        "p99_s": _percentile(took, 0.99),
        "tenths": _tenths(rows),
        "repeated": len(repeated),
        "broken_s": [round(b - a, 1) for a, b in windows if b < math.inf],
        "during": _during(rows, windows),
        "others_during": _during([row for row in rows if row.id not in repeated], windows),
        "reasons": dict(reasons.most_common(8)),
    }


def _tenths(rows: list[Sent]) -> dict[str, list[float | None]]:
    """Return percentiles of the answers, by tenths of the requests in the order of their start."""
    ordered = sorted(rows, key=lambda row: row.started_s)
    bounds = [number * len(ordered) // 10 for number in range(11)]
    parts = [
        sorted(row.took_s for row in ordered[first:end] if row.outcome == "answered")
        for first, end in itertools.pairwise(bounds)
    ]
    shares = {"p50_s": 0.5, "p95_s": 0.95, "p99_s": 0.99}
    return {name: [_percentile(part, share) for part in parts] for name, share in shares.items()}


def _during(rows: list[Sent], windows: Sequence[tuple[float, float]]) -> dict[str, Any]:
    began = [row for row in rows if any(a <= row.started_s <= b for a, b in windows)]
    took = sorted(row.took_s for row in began if row.outcome == "answered")
    percentiles = {"p50_s": _percentile(took, 0.5), "p99_s": _percentile(took, 0.99)}
    return {"sent": len(began), "answered": len(took), **percentiles}


def _percentile(ordered: list[float], share: float) -> float | None:
    return round(ordered[int(share * (len(ordered) - 1))], 3) if ordered else None
