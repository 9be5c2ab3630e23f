"""Measure a running service, the engine alone, the front door on a Ray Serve of its own, or
adapters that come and go.

`engine`, `load`: scripts/benchmarks/engine.py, scripts/benchmarks/load.py. `gateway`, `clients`:
scripts/benchmarks/gateway.py, scripts/benchmarks/slow_clients.py. `churn`, `hot_add`:
scripts/benchmarks/churn.py, scripts/benchmarks/hot_add.py. `service`: first token, whole answers,
memory and its growth.

Start the service (`make serve`), then, with the pid that it printed:

    python -m scripts.benchmark service --url http://127.0.0.1:8000 --pid 1234

Clocks start before the request is sent; tokens come from `usage`; warm-ups are discarded and
counted; failures are counted apart. The last line of stdout is one JSON object. Memory is PSS, the
proportional set size of the pid and all its descendants (Linux: /proc/PID/smaps_rollup), so that
shared pages count once.
"""

import argparse
import json
import statistics
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from deployments.startup.processes import ProcessTree
from scripts.benchmarks import hot_add_arguments
from scripts.benchmarks.churn_arguments import add_arguments
from scripts.environment import environment, pss_mib

# 30 words, so that the figure is that of the "30-word question".
QUESTION = (
    "For about three weeks I have had red, itchy and slightly scaly patches on both of my elbows "
    "and knees; what could this be, and should I see a doctor?"
)
# Requests of the memory run: four routes, different lengths, so that no one shape is favoured.
MIXED = (
    QUESTION,
    "What are the first signs of Parkinson's disease?",
    "My heart sometimes races for a minute when I climb the stairs, is that dangerous?",
    "What can I do against heartburn at night?",
)


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.what == "engine":
        from scripts.benchmarks import engine

        return engine.run(args, argv)
    if args.what == "load":
        from scripts.benchmarks import load

        return load.run(args, argv)
    if args.what == "churn":
        from scripts.benchmarks import churn

        return churn.run(args, argv)
    if args.what == "hot_add":
        from scripts.benchmarks import hot_add

        return hot_add.run(args, argv)
    if args.what == "gateway":
        from scripts.benchmarks import gateway

        return gateway.run(args, argv)
    if args.what == "clients":
        from scripts.benchmarks import slow_clients

        return slow_clients.run(args, argv)
    url = args.url.rstrip("/")
    ready = _get(f"{url}/readyz")
    report: dict[str, Any] = {
        "what": "service",
        **environment(),
        "command": "python -m scripts.benchmark " + " ".join(argv or sys.argv[1:]),
        "base_model": ready["base_model"],
        "dtype": ready["dtype"],
        "decoder": ready["decoder"],
        "num_adapters": len(ready["adapters"]),
    }
    for _ in range(args.warmup):
        _stream(url, QUESTION, args.max_tokens)
    report["num_warmups"] = args.warmup
    report["question_words"] = len(QUESTION.split())
    timed = [_stream(url, QUESTION, args.max_tokens) for _ in tqdm(range(args.repeats), "stream")]
    report["first_token_s"] = _spread(first for first, _, _ in timed)
    report["tokens_per_s"] = _spread(tokens / total for _, total, tokens in timed)
    if args.pid:
        report["memory"] = _memory_run(url, args.pid, args.requests)
    print(_table(report))
    print(json.dumps(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="what", required=True)
    service = commands.add_parser("service", help="a running service over HTTP")
    service.add_argument("--url", default="http://127.0.0.1:8000")
    service.add_argument("--pid", type=int, help="of `make serve`; without it, no memory figures")
    service.add_argument("--repeats", type=int, default=10, help="timed streams")
    service.add_argument("--warmup", type=int, default=3)
    service.add_argument("--max_tokens", type=int, default=32)
    service.add_argument(
        "--requests", type=_run_length, default=500, help="requests of the memory run, from 200"
    )
    engine = commands.add_parser("engine", help="the engine in process, against PEFT")
    _add_engine_arguments(engine)
    load = commands.add_parser("load", help="the engine in process, requests that come and go")
    _add_load_arguments(load)
    add_arguments(commands.add_parser("churn", help="adapters that come and go, in process"))
    hot_add_arguments.add_arguments(
        commands.add_parser("hot_add", help="new versions over HTTP, on several replicas")
    )
    _add_front_door_arguments(commands)
    return parser


def _add_front_door_arguments(commands: Any) -> None:
    gateway = commands.add_parser("gateway", help="what the front door adds to Ray's own chain")
    gateway.add_argument("--mode", choices=["default", "fast"], default="default")
    gateway.add_argument("--rounds", type=int, default=5, help="each with every side in turn")
    gateway.add_argument("--requests", type=int, default=150, help="one after the other, per round")
    gateway.add_argument("--seconds", type=float, default=4, help="at full load, per round")
    gateway.add_argument("--concurrency", type=int, default=32)
    clients = commands.add_parser("clients", help="many streaming clients that read slowly")
    clients.add_argument("--readers", type=int, default=200)
    clients.add_argument("--rounds", type=int, default=5, help="of all readers at once")
    clients.add_argument("--probes", type=int, default=40, help="first tokens timed, per round")
    for parser in (gateway, clients):
        parser.add_argument("--out", type=Path, help="write the JSON here too")


def _add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model_arguments(parser)
    parser.add_argument("--requests", type=int, default=16, help="at the same time")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--prompt_tokens", type=int, default=25)
    parser.add_argument("--output_tokens", type=int, default=64)
    parser.add_argument("--sequential", type=int, default=2, help="requests of the sequential side")
    parser.add_argument("--skip_peft", action="store_true", help="the engine alone")


def _add_load_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model_arguments(parser)
    parser.add_argument("--pattern", choices=["closed_loop", "uneven"], default="closed_loop")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16], help="rows of each run")
    parser.add_argument("--requests", type=int, default=64)
    for name, default in (("--prompt_tokens", [20, 30]), ("--output_tokens", [64, 64])):
        parser.add_argument(name, type=int, nargs=2, default=default, metavar=("LEAST", "MOST"))
    parser.add_argument("--seed", type=int, default=0)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="smollm2-135m-instruct",
        help="a folder, a name, or flan-t5-xl-shape / llama-1b-shape with random weights",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", nargs="+", help="default: the q and v projections")
    parser.add_argument("--prefill_tokens", type=int, default=256, help="prompt tokens of a step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    parser.add_argument("--out", type=Path, help="write the JSON here too")


def _run_length(text: str) -> int:
    """The slope is taken after the first 100 requests, with a sample every 50."""
    if not text.isdecimal() or int(text) < 200:
        raise argparse.ArgumentTypeError(f"'{text}': a whole number from 200 is expected")
    return int(text)


def _stream(url: str, question: str, max_tokens: int) -> tuple[float, float, int]:
    """(seconds to the first text, seconds in all, generated tokens) of one streamed chat."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.perf_counter()
    first_s, num_tokens = None, 0
    with _post(f"{url}/v1/chat/completions", body) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[len(b"data: ") :])
            if "error" in chunk:
                raise RuntimeError(f"the stream broke: {chunk['error']['code']}")
            text = chunk["choices"] and chunk["choices"][0]["delta"].get("content")
            if text and first_s is None:
                first_s = time.perf_counter() - started
            num_tokens = (chunk.get("usage") or {}).get("completion_tokens", num_tokens)
    total_s = time.perf_counter() - started
    if first_s is None:
        raise RuntimeError("the stream held no text")
    return first_s, total_s, num_tokens


def _memory_run(url: str, pid: int, num_requests: int) -> dict[str, Any]:
    """PSS before and after, and its slope: MiB for each 100 requests after the first 100."""
    samples = []
    failed = 0
    tree = ProcessTree(pid)
    for count in tqdm(range(num_requests + 1), "memory"):
        if count % 50 == 0:
            tree.refresh()
            samples.append((count, pss_mib(tree.alive())))
        if count == num_requests:
            break
        try:
            question = MIXED[count % len(MIXED)]
            body = {"question": question, "max_tokens": 8 + count % 9}
            with _post(f"{url}/ask", body) as response:
                response.read()
        except urllib.error.URLError:
            failed += 1
    late = [(count, mib) for count, mib in samples if count >= 100]
    slope = statistics.linear_regression(*zip(*late, strict=True)).slope * 100
    return {
        "num_requests": num_requests,
        "num_failed": failed,
        "pss_mib_before": round(samples[0][1], 1),
        "pss_mib_after": round(samples[-1][1], 1),
        "growth_mib_per_100": round(slope, 3),
        "samples": [(count, round(mib, 2)) for count, mib in samples],
    }


def _post(url: str, body: dict[str, Any]) -> Any:
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=300)


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)


def _spread(values: Iterable[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "median": round(statistics.median(ordered), 3),
        "p90": round(ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))], 3),
        "max": round(ordered[-1], 3),
    }


def _table(report: dict[str, Any]) -> str:
    rows = [
        ("first token, s", report["first_token_s"]),
        ("tokens a second, one stream", report["tokens_per_s"]),
    ]
    lines = [f"{name:<30} {json.dumps(value)}" for name, value in rows]
    memory = report.get("memory")
    if memory:
        shown = {key: value for key, value in memory.items() if key != "samples"}
        lines.append(f"{'memory (PSS)':<30} {json.dumps(shown)}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
