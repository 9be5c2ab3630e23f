"""Measure the service, the engine alone, the HTTP side, adapters that come and go, or training.

    python -m scripts.benchmark engine --dtype float32 --out engine.json
    python -m scripts.benchmark engine --help          # what it measures, and its arguments

The last line of stdout is one JSON object that says where and how it was measured.
"""

import argparse
import signal
import sys
from collections.abc import Sequence

from scripts.arguments import HelpFormatter
from scripts.benchmarks import (
    engine,
    gateway,
    gpu_suite,
    load,
    memory,
    observing,
    prefixes,
    quality,
    quoting,
    report,
    scaling,
    serve,
    service,
    slow_clients,
    structured,
    tolerance,
    training,
)
from scripts.benchmarks.cpu_peers import command as cpu_peers
from scripts.benchmarks.in_process import invariance
from scripts.benchmarks.live_adapters import churn, hot_add, placement
from scripts.benchmarks.scale_model import simulate
from scripts.benchmarks.vllm_peer import command as vllm

# Name -> (module with `add_arguments` and `run`, one line of help).
_BENCHMARKS = {
    "service": (service, "a running service over HTTP"),
    "engine": (engine, "the engine in process, against PEFT"),
    "load": (load, "the engine in process, requests that come and go"),
    "memory": (memory, "a quantised base within a budget of GPU memory, in process"),
    "invariance": (
        invariance,
        "whether answers depend on what runs beside them, and what it costs",
    ),
    "churn": (churn, "adapters that come and go, in process"),
    "hot_add": (hot_add, "new adapter versions over HTTP, on several replicas"),
    "gateway": (gateway, "what our HTTP side adds to Ray's own chain"),
    "serve": (serve, "the whole application over HTTP, streams of mixed adapters"),
    "observing": (observing, "what records of requests and traces cost"),
    "peers": (cpu_peers, "this application, llama.cpp and PEFT on the CPU, in turn"),
    "placement": (placement, "more adapters than places, on several replicas"),
    "quality": (quality, "what weights of fewer bits cost in the loss of each adapter"),
    "scaling": (scaling, "1 -> 2 -> 1 model replicas under load, and the parts of a start"),
    "clients": (slow_clients, "many streaming clients that read slowly"),
    "prefixes": (prefixes, "prompts that share their beginnings, in process"),
    "quoting": (quoting, "answers that repeat their prompt, in process"),
    "structured": (structured, "answers that keep to JSON schemas, in process"),
    "report": (report, "no measurement: write docs/measurements.md from the result files"),
    "simulate": (simulate, "clinics of many replicas, with the costs that were measured"),
    "tolerance": (tolerance, "bfloat16 logits against transformers' and PEFT's"),
    "vllm": (vllm, "vLLM with LoRA, over HTTP and in process"),
    "gpu": (gpu_suite, "all of the GPU's benchmarks side by side, within a time limit"),
    "training": (training, "training on a quantised base, memory and speed"),
}


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(given)
    module, _ = _BENCHMARKS[args.what]
    status: int = module.run(args, given)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="what", required=True, metavar="BENCHMARK")
    for name, (module, summary) in _BENCHMARKS.items():
        command = commands.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=HelpFormatter
        )
        module.add_arguments(command)
    return parser


if __name__ == "__main__":
    # As after Ctrl-C: what a benchmark has started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raise SystemExit(main())
