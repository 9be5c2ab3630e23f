"""Measure the engine in process, against PEFT, in one run: many adapters in one batch.

    python -m scripts.benchmark engine --dtype float32 --out docs/benchmarks/engine_cpu.json
    python -m scripts.benchmark engine --model flan-t5-xl-shape --device cuda --requests 64 \\
        --rows 64 --prompt_tokens 64 --output_tokens 128 --out docs/benchmarks/engine_h100.json
    (and `--quantization none int8 nf4 fp8` for all of them beside each other)

Random adapters that take turns, `--requests` questions at once; end-of-sequence tokens are ignored,
so that every side makes the same number of tokens. Sides: the engine with mixed adapters, without
adapters, and with one stream; PEFT's mixed batch (`adapter_names`), and `set_adapter` + `generate`
one request at a time. Each side is warmed up once; then all are timed in turn, `--repeats` times,
and the medians are compared. With
`--served` also the engine as a replica runs it, in a process of its own, beside bare steps of the
same rows: `decoding_per_s` leaves the reading of prompts out. Also: the time of one decode step by
batch size, without and with adapters, and its memory floor.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.benchmarks.command import add_model_arguments, publish

_KINDS = ("int8", "nf4", "fp8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--adapters", type=int, default=8, help="on the device")
    parser.add_argument("--prefill_tokens", type=int, default=256, help="prompt tokens of a step")
    parser.add_argument("--repeats", type=int, default=3, help="of each side")
    parser.add_argument("--requests", type=int, default=16, help="at the same time")
    parser.add_argument("--rows", type=int, default=16, help="answers of one batch")
    parser.add_argument("--prompt_tokens", type=int, default=25, help="a fifth more or less")
    parser.add_argument("--output_tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--sequential", type=int, default=2, help="requests of the sequential side")
    parser.add_argument("--skip_peft", action="store_true", help="the engine alone")
    parser.add_argument(
        "--served", action="store_true", help="also the engine in a process of its own"
    )
    kinds = ["none", "auto", "int8", "int4"]
    parser.add_argument(
        "--beside_s", type=float, help="also time steps while every core is taken, so long"
    )
    parser.add_argument("--weights", choices=kinds, default="none", help="of our engine, on a CPU")
    parser.add_argument(
        "--quantization",
        nargs="+",
        choices=["none", *_KINDS],
        default=["none"],
        help="of the base on a GPU; several: one after the other in this run",
    )


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    from scripts.benchmarks.in_process.engine_sides import measure

    found = {}
    for kind in args.quantization:
        with tempfile.TemporaryDirectory() as scratch:
            found[kind] = measure(args, Path(scratch), kind)
    shown: list[tuple[str, Any]] = []
    for kind, measured in found.items():
        shown += [
            ("quantization", kind),
            *measured["sides"].items(),
            *(("step", step) for step in measured["steps"]),
            ("ratios", measured["ratios"]),
            *(("beside others", each) for each in measured["beside_others"]),
        ]
    report = next(iter(found.values()))
    if len(found) > 1:
        over = over_first(found)
        shown.append(("over the first", over))
        report = {"by_quantization": found, "over_first": over}
    publish("engine", arguments, report, out=args.out, lines=shown)
    return 0


def over_first(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return steps' times and token rates of each quantisation, over those of the first."""
    first, *others = found
    ratios = {}
    for kind in others:
        ratios[kind] = {
            f"step at {own['rows']}": round(own["step_ms"] / base["step_ms"], 3)
            for own, base in zip(found[kind]["steps"], found[first]["steps"], strict=True)
        }
        own, base = (found[each]["sides"]["engine_mixed"]["tokens_per_s"] for each in (kind, first))
        ratios[kind]["tokens a second, mixed"] = round(own / base, 3)
    return ratios
