"""Measure a running service over HTTP: first token, token rate, memory and its growth.

    make serve                                                         # prints its pid
    python -m scripts.benchmark service --url http://127.0.0.1:8000 --pid 1234
    python -m scripts.benchmark service --grounding off cite quote --max_tokens 64

Tokens come from `usage`; warm-ups are discarded and counted; failures are counted apart. Memory is
the proportional set size (PSS, Linux) of the pid and all its descendants, in which pages shared by
several processes count once.
"""

import argparse
import asyncio
import os
import statistics
from collections.abc import Sequence
from typing import Any

import aiohttp
from tqdm import tqdm

from deployments.startup.processes import ProcessTree
from scripts.arguments import at_least
from scripts.benchmarks.command import add_out, publish, spread
from scripts.benchmarks.over_http.http_client import (
    PreparedRequest,
    StreamedAnswer,
    call,
    chat_body,
    connect,
    read_stream,
    succeeds,
)
from scripts.environment import pss_mib

QUESTION = (  # 30 words
    "For about three weeks I have had red, itchy and slightly scaly patches on both of my elbows "
    "and knees; what could this be, and should I see a doctor?"
)
# The memory run's questions: four routes and four lengths, so that shapes vary.
MIXED = (
    QUESTION,
    "What are the first signs of Parkinson's disease?",
    "My heart sometimes races for a minute when I climb the stairs, is that dangerous?",
    "What can I do against heartburn at night?",
)
# Which the default reference shelf has passages for; each is asked about once, since a prompt that
# was read is not read again.
CONDITIONS = (
    *(
        "eczema",
        "Marfan syndrome",
        "monilethrix",
        "nephrotic syndrome",
        "nuchal rigidity",
        "asthma",
    ),
    *("pheochromocytoma", "gout", "achalasia", "retinoblastoma", "vertigo", "hemophilia A"),
    *("sickle cell anemia", "cataplexy", "amblyopia", "hydrocephalus", "tinnitus", "vitiligo"),
    *("osteoporosis", "goiter", "endometriosis", "jaundice", "cystinuria", "Ebstein anomaly"),
)
_SAMPLE_EVERY, _WARM_UP = 50, 100  # requests of the memory run, whose slope needs as many again


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="of the service")
    add("--pid", type=int, help="of `make serve`; without it, no memory figures")
    add("--repeats", type=int, default=10, help="timed streams")
    add("--warmup", type=int, default=3, help="streams before the timed ones")
    add("--max_tokens", type=int, default=32, help="of each answer")
    modes = ["off", "cite", "quote"]
    add(
        "--grounding", nargs="+", default=[], choices=modes, help="timed in turn, for each question"
    )
    add("--requests", type=at_least(2 * _WARM_UP), default=500, help="of the memory run")
    add_out(parser)


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    before = os.getloadavg()
    measured = asyncio.run(_measure(args))
    measured["load_average"] = {"before": before, "after": os.getloadavg()}
    shown = [
        ("first token, s", measured["first_token_s"]),
        ("tokens a second, one stream", measured["tokens_per_s"]),
    ]
    shown += measured.get("groundings", {}).items()
    if memory := measured.get("memory"):
        shown.append(("memory (PSS)", {k: v for k, v in memory.items() if k != "samples"}))
    publish("service", arguments, measured, out=args.out, lines=shown)
    return 0


async def _measure(args: argparse.Namespace) -> dict[str, Any]:
    url = args.url.rstrip("/")
    async with connect() as session:
        _, ready = await call(session, "GET", f"{url}/readyz")
        body = chat_body(QUESTION, args.max_tokens)
        request = PreparedRequest.post("stream", f"{url}/v1/chat/completions", body)
        for _ in range(args.warmup):
            await read_stream(session, request)
        timed = [await read_stream(session, request) for _ in tqdm(range(args.repeats), "stream")]
        report = {key: ready[key] for key in ("base_model", "dtype", "decoder")} | {
            "num_adapters": len(ready["adapters"]),
            "num_warmups": args.warmup,
            "question_words": len(QUESTION.split()),
            "first_token_s": spread((answer.first_token_s for answer in timed), 90),
            "tokens_per_s": spread((_tokens_per_s(answer) for answer in timed), 90),
        }
        if args.grounding:
            report["groundings"] = await _groundings(session, url, args)
        if args.pid:
            report["memory"] = await _memory_run(session, url, args.pid, args.requests)
    return report


async def _groundings(
    session: aiohttp.ClientSession, url: str, args: argparse.Namespace
) -> dict[str, Any]:
    """Return, by how answers stand on references, their times."""
    timed: dict[str, list[StreamedAnswer]] = {mode: [] for mode in args.grounding}
    for condition in tqdm(CONDITIONS, "grounding"):
        for mode, answers in timed.items():
            body = chat_body(f"What is {condition}?", args.max_tokens) | {"grounding": mode}
            request = PreparedRequest.post(mode, f"{url}/v1/chat/completions", body)
            answers.append(await read_stream(session, request))
    return {
        mode: {
            "first_token_s": spread((answer.first_token_s for answer in answers), 95),
            "whole_answer_s": spread((a.ended_at - a.sent_at for a in answers), 95),
            "tokens": statistics.mean(answer.num_tokens for answer in answers),
        }
        for mode, answers in timed.items()
    }


def _tokens_per_s(answer: StreamedAnswer) -> float:
    return answer.num_tokens / (answer.ended_at - answer.sent_at)


async def _memory_run(
    session: aiohttp.ClientSession, url: str, pid: int, num_requests: int
) -> dict[str, Any]:
    """Return PSS before and after, and its slope: MiB per 100 requests after the first 100."""
    samples: list[tuple[int, float]] = []
    num_failed = 0
    tree = ProcessTree(pid)
    for count in tqdm(range(num_requests + 1), "memory"):
        if count % _SAMPLE_EVERY == 0:
            samples.append((count, pss_mib(tree.alive())))
        if count < num_requests:
            body = {"question": MIXED[count % len(MIXED)], "max_tokens": 8 + count % 9}
            request = PreparedRequest.post("memory", f"{url}/ask", body)
            num_failed += not await succeeds(session, request)
    late = [sample for sample in samples if sample[0] >= _WARM_UP]
    slope = statistics.linear_regression(*zip(*late, strict=True)).slope * 100
    return {
        "num_requests": num_requests,
        "num_failed": num_failed,
        "pss_mib_before": round(samples[0][1], 1),
        "pss_mib_after": round(samples[-1][1], 1),
        "growth_mib_per_100": round(slope, 3),
        "samples": [(count, round(mib, 2)) for count, mib in samples],
    }
